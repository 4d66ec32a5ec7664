"""`--model` and what goes with it: the client that a command's runs use."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from nano_vm.cli.arguments import beside_store
from nano_vm.errors import InputError

if TYPE_CHECKING:
    from nano_vm.providers.cache import Answers
    from nano_vm.providers.model_store import ModelStore
    from nano_vm.runtime.ports import ModelClient

CACHE_VARIABLE = "NANO_VM_CACHE_URL"  # redis://…; in the environment, because it may hold a password
SUFFIX = "-models"  # beside the database: records of providers and cached answers


class Model:
    """The client, and the file it keeps its memory in, if it needs one.

    Raises (on making): InputError: USAGE for options that contradict each other, and what `client_named` raises.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.store: ModelStore | None = None
        self.client: ModelClient | None = None
        spec, base_url = args.model, args.base_url
        if args.replay is not None:
            for option, value in (
                ("--model", spec),
                ("--record", args.record),
                ("--cache", args.cache or None),
            ):
                if value is not None:
                    raise InputError(
                        "USAGE", f"--replay answers from a tape; {option} asks a model", help="drop one"
                    )
            from nano_vm.providers.cassette import CassettePlayer

            self.client = CassettePlayer(args.replay)
            return
        if spec is None:
            for option, value in (
                ("--base-url", base_url),
                ("--record", args.record),
                ("--prices", args.prices),
            ):
                if value is not None:
                    raise InputError("USAGE", f"{option} without --model", help="add --model openai:MODEL")
            if args.cache:
                raise InputError("USAGE", "--cache without --model", help="add --model openai:MODEL")
            return
        if base_url is not None and not spec.startswith("openai:"):
            raise InputError("USAGE", "--base-url goes with --model openai:MODEL only", help="--base-url URL")
        if spec.startswith("pool:") or args.cache:
            self.store = open_model_store(args)
        try:
            self.client = self._client(args, spec, base_url)
        except BaseException:
            self.close()
            raise

    def _client(self, args: argparse.Namespace, spec: str, base_url: str | None) -> ModelClient:
        from nano_vm.providers.naming import client_named

        client = client_named(spec, base_url=base_url, prices=args.prices, memory=self.store)
        if args.cache:
            from nano_vm.providers.cache import ModelCache

            client = ModelCache(client, self._answers())
        if args.record is not None:
            from nano_vm.providers.cassette import CassetteRecorder

            client = CassetteRecorder(client, args.record)
        return client

    def _answers(self) -> Answers:
        """Where answers are kept: beside the database, or in the Redis that the environment names."""
        url = os.environ.get(CACHE_VARIABLE)
        if url:
            from nano_vm.providers.redis_answers import RedisAnswers

            return RedisAnswers(url)
        assert self.store is not None
        return self.store

    def close(self) -> None:
        if self.store is not None:
            self.store.close()


def model_store_path(args: argparse.Namespace) -> Path:
    return Path(beside_store(args) + SUFFIX)


def open_model_store(args: argparse.Namespace) -> ModelStore:
    """The file beside the database.

    Raises:
        StoreError: STORE_FOREIGN, STORE_NEWER, STORE_IO.
    """
    from nano_vm.providers.model_store import ModelStore

    return ModelStore(model_store_path(args))
