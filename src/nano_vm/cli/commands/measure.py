"""Hold traces of other systems - or event logs of ours - against the measures of runs.

nano-vm measure spans.json --from otel          OpenTelemetry spans (OTLP JSON)
nano-vm measure chats.jsonl --from openai       conversations in the form of chat completions
nano-vm measure session.jsonl --from transcript transcripts of coding agents
nano-vm measure debug.jsonl --from langgraph    LangGraph's debug stream
nano-vm measure messages.jsonl --from mcp       messages of the Model Context Protocol
nano-vm measure log.xes.gz --from xes           an event log in XES (IEEE 1849)
nano-vm measure log.json --from ocel            an object-centric one (OCEL 2.0, JSON)
nano-vm measure runs.jsonl --from jsonl         what `nano-vm eventlog --format jsonl` wrote

A file may be compressed (gzip). With --baseline the traces of another file of the same form are what is normal.
"""

from __future__ import annotations

import argparse

from nano_vm.cli import exits
from nano_vm.cli.baselines import read_traces
from nano_vm.cli.console import Console, printable
from nano_vm.observe import imports
from nano_vm.observe.analyzer import metrics_of
from nano_vm.observe.baseline import learn

SHOWN_MAX = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the traces")
    parser.add_argument(
        "--from", dest="form", choices=sorted(imports.READERS), required=True, help="what they are"
    )
    parser.add_argument("--baseline", metavar="FILE", help="traces of the same form that went well")


def execute(args: argparse.Namespace, console: Console) -> int:
    found = read_traces(args.form, args.file)
    baseline = learn(read_traces(args.form, args.baseline)) if args.baseline else None
    rows = [{"id": run.id, "status": run.status, **metrics_of(run, baseline)} for run in found]
    console.document({"file": args.file, "form": args.form, "trajectories": rows})
    for run, row in list(zip(found, rows, strict=True))[:SHOWN_MAX]:
        surprisal = "" if row["mean_surprisal"] is None else f", surprisal {row['mean_surprisal']:.2f} bits"
        console.line(
            f"{printable(run.id)}  {row['moves']} moves, churn {row['tool_churn']:.2f}, "
            f"entropy {row['transition_entropy']:.2f} bits{surprisal}"
        )
    if len(rows) > SHOWN_MAX:
        console.note(f"and {len(rows) - SHOWN_MAX} more: use --json")
    if not rows:
        console.line("no traces")
    return exits.DONE
