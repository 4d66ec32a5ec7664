"""Limits of the kernel: everything that could grow has a name and a bound (P10)."""

from __future__ import annotations

INBOX_MAX = 64  # events kept for waits that have not been reached
EVENTS_SEEN_MAX = 10_000  # event ids remembered for deduplication
PAYLOAD_BYTES_MAX = 8 * 1024 * 1024  # canonical size of one payload
EVENT_ID_CHARS_MAX = 256
CALL_DEPTH_MAX = 16
COMPENSATION_ATTEMPTS_MAX = 3
COMPENSATION_BACKOFF_MS = 1_000
TEXT_CHARS_MAX = 1_024  # an error type, a name, a reason
NAME_CHARS_MAX = 256  # a step id, an event name, a run id as far as events name them
AGENT_CALLS_MAX = 32  # calls that a model may propose in one answer
AGENT_RESULT_CHARS_MAX = 65_536  # of one tool result, as the model is told it
AGENT_TALK_CHARS_MAX = 4 * 1024 * 1024  # of a whole conversation
ROLES_MAX = 64  # roles of one principal
SWITCHES_MAX = 64  # of one model call
SWITCH_REASONS = frozenset({"ProviderUnavailable", "RetryLimitExceeded"})
