"""A program of one's own: two tools, one decision, every step journaled.  python examples/own_program.py"""

from nano_vm import ExecutionVM, MockLLMAdapter, Program, SqliteStore, tool


@tool(effect="pure")
def word_count(text: str) -> int:
    return len(text.split())


@tool(effect="idempotent")
def publish(text: str) -> str:
    return f"published: {text}"


PROGRAM = Program.from_yaml("""
name: publish_if_short
steps:
  - {id: count, type: tool, tool: word_count, args: {text: $text}}
  - {id: short, type: condition, condition: $count.output <= 5, then: title, otherwise: too_long}
  - {id: title, type: llm, prompt: "A title for: $text"}
  - {id: post, type: tool, tool: publish, args: {text: "${title.output}: $text"}, is_terminal: true}
  - {id: too_long, type: tool, tool: word_count, args: {text: ""}, is_terminal: true, final_status: FAILED}
""")

if __name__ == "__main__":
    vm = ExecutionVM(llm=MockLLMAdapter("News"), tools=[word_count, publish], store=SqliteStore("own.db"))
    trace = vm.run_sync(PROGRAM, {"text": "hello durable world"})
    print(trace.status, trace.path, trace.final_output)
    print(vm.verify(trace.trace_id).steps[0])
