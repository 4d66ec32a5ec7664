"""Names of OpenTelemetry's semantic conventions that we use. They are written down here because those for generative AI
are still in development and change from release to release.

Version: semantic conventions 1.45 / Python package 0.66b2; generative AI: as of November 2026, status Development.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.66b2"

OPERATION: Final = "gen_ai.operation.name"
INVOKE_WORKFLOW: Final = "invoke_workflow"
EXECUTE_TOOL: Final = "execute_tool"
CHAT: Final = "chat"
WORKFLOW_NAME: Final = "gen_ai.workflow.name"
TOOL_NAME: Final = "gen_ai.tool.name"
PROVIDER: Final = "gen_ai.provider.name"
RESPONSE_MODEL: Final = "gen_ai.response.model"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
ERROR_TYPE: Final = "error.type"

# Our own, where the conventions have none.
RUN_ID: Final = "nano_vm.run.id"
RUN_STATUS: Final = "nano_vm.run.status"
PROGRAM_HASH: Final = "nano_vm.program.hash"
STEP: Final = "nano_vm.step"
OCCURRENCE: Final = "nano_vm.occurrence"
ITEM: Final = "nano_vm.item"
ATTEMPT: Final = "nano_vm.attempt"
ENTRY: Final = "nano_vm.entry.digest"
OUTCOME: Final = "nano_vm.outcome"
COMPENSATION: Final = "nano_vm.compensation"
COST_USD: Final = "nano_vm.cost_usd"
CACHED: Final = "nano_vm.cached"
OUTPUT: Final = "nano_vm.output"
