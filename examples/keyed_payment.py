"""The same payment, asked for twice and retried once, is made once.  python examples/keyed_payment.py

`pay` is `keyed`: it hands `ctx.idempotency_key` to the other side, which answers a known key with the first result.
Attempts of one action share the key. With `idempotency_key:` in the program the key comes from the business alone, so
that even two runs share it.
"""

from nano_vm import ExecutionVM, MemoryStore, Program, ToolContext, ToolError, tool


class Bank:
    """The other side: it keeps what it has done under each key."""

    def __init__(self) -> None:
        self.payments: dict[str, dict] = {}
        self.calls = 0

    def pay(self, key: str, amount: int) -> dict:
        self.calls += 1
        return self.payments.setdefault(key, {"id": f"p{len(self.payments) + 1}", "amount": amount})


bank = Bank()


@tool(effect="keyed")
def pay(invoice: str, amount: int, ctx: ToolContext) -> dict:
    receipt = bank.pay(ctx.idempotency_key, amount)
    if ctx.attempt == 1:
        # Say that the answer was lost on the way: the outcome is unknown, and the key makes repeating it safe.
        raise ToolError("connection reset", unknown=True, code="LOST_ANSWER")
    return receipt


PROGRAM = Program.from_yaml("""
name: pay_invoice
steps:
  - id: pay
    type: tool
    tool: pay
    args: {invoice: $invoice, amount: $amount}
    idempotency_key: invoice-$invoice
    on_error: retry
""")

if __name__ == "__main__":
    vm = ExecutionVM(tools=[pay], store=MemoryStore())
    first = vm.run_sync(PROGRAM, {"invoice": "2026-17", "amount": 90})
    second = vm.run_sync(PROGRAM, {"invoice": "2026-17", "amount": 90})
    print(first.status, first.final_output, "attempts:", first.steps[0].attempts)
    print(second.status, second.final_output)
    print("calls:", bank.calls, "payments:", len(bank.payments))
