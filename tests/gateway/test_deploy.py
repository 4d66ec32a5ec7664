"""What is shipped for deploying can be read by what reads it."""

from __future__ import annotations

from pathlib import Path

import yaml

from nano_vm.gateway.config import check_exposure, load_config

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def test_the_configuration_of_the_container_is_one() -> None:
    config = load_config(str(DEPLOY / "gateway.yaml"), {})
    check_exposure(config)
    assert config.auth.tokens
    for name in config.tools:
        assert (DEPLOY.parent / "examples" / Path(name).name).is_file()


def test_the_compose_file_mounts_what_is_there() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["gateway"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    for volume in service["volumes"][1:]:
        assert (DEPLOY / volume.split(":")[0]).exists()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
