"""Exactly once: the tool's own rows and the journal's entry commit together, or not at all.

python examples/transactional_tool.py

The tool receives the store's open transaction. It may create and change tables of its own in the same database file.
"""

from nano_vm import ExecutionVM, Program, SqliteStore, ToolContext, ToolError, tool


@tool(effect="transactional")
def transfer(source: str, target: str, amount: int, ctx: ToolContext) -> dict:
    connection = ctx.transaction.connection
    connection.execute(
        "CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, balance INTEGER NOT NULL)"
    )
    connection.execute("INSERT OR IGNORE INTO accounts VALUES ('ana', 100), ('bob', 0)")
    connection.execute("UPDATE accounts SET balance = balance - ? WHERE name = ?", (amount, source))
    connection.execute("UPDATE accounts SET balance = balance + ? WHERE name = ?", (amount, target))
    balances = dict(connection.execute("SELECT name, balance FROM accounts ORDER BY name").fetchall())
    if balances[source] < 0:
        raise ToolError("not enough money", retryable=False, code="OVERDRAWN")  # and nothing has happened
    return balances


PROGRAM = Program.from_yaml("""
name: transfer
steps:
  - {id: move, type: tool, tool: transfer, args: {source: ana, target: bob, amount: $amount}}
""")

if __name__ == "__main__":
    vm = ExecutionVM(tools=[transfer], store=SqliteStore("accounts.db"))
    for amount in (60, 70, 30):
        trace = vm.run_sync(PROGRAM, {"amount": amount})
        print(amount, trace.status, trace.final_output if trace.error is None else trace.error["type"])
