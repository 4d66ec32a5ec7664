"""The MCP servers behind the gateway: their tools are tools of programs, as long as their definitions are accepted."""

from __future__ import annotations

import msgspec

from nano_vm.gateway.config import GatewayConfig
from nano_vm.gateway.state import GatewayState
from nano_vm.runtime.engine import Engine
from nano_vm.tools.mcp import MountedServer, MountSpec
from nano_vm.tools.registry import ToolSet


class Mounts:
    """All mounted servers of a gateway."""

    def __init__(self, engine: Engine, tools: ToolSet, state: GatewayState, config: GatewayConfig) -> None:
        self._engine = engine
        self._tools = tools
        self.servers = [
            MountedServer(
                MountSpec(
                    name=name,
                    **{
                        **msgspec.structs.asdict(mount),
                        "prefix": f"{name}_" if mount.prefix is None else mount.prefix,
                    },
                ),
                state,
            )
            for name, mount in sorted(config.mounts.items())
        ]
        self._digests: dict[str, str] = {}

    async def start(self) -> None:
        """Connect to all of them. Raises RuntimeFault MOUNT_FAILED, having closed those that were mounted."""
        try:
            for server in self.servers:
                await server.start()
            self.refresh()
        except BaseException:
            await self.close()
            raise

    def refresh(self) -> None:
        """Register what has been pinned or accepted since."""
        changed = False
        for server in self.servers:
            for spec in server.specs():
                if self._digests.get(spec.name) != spec.digest:
                    self._tools.put(spec)
                    self._digests[spec.name] = spec.digest
                    changed = True
        if changed:
            self._engine.forget_compiled()

    async def close(self) -> None:
        for server in self.servers:
            await server.close()
