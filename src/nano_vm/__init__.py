"""nano-vm: deterministic, durable, governed execution of LLM workflows."""
