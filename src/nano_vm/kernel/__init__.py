"""The kernel: a pure state machine that decides what must happen next (SPEC §4; `spec/transition.md`).

    decide(program, state)        -> commands
    apply(program, state, event)  -> State | Rejection

Read `state` and `events` first, then `transition` (which events are admissible) and `flow` (what entering a
step does). `settle` binds results and goes on from them, `groups` runs the lanes of parallel and map, `waits`
matches events with waits, `ending` stops a run without abandoning an effect, `compensation` undoes what was
done.
"""
