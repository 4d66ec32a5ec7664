"""The gateway: runs, programs and their evidence for MCP clients (SPEC §13). Needs the extra `mcp`."""
