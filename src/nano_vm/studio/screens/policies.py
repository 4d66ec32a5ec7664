"""Policies and vault: what runs may do and what was decided; which secrets there are, and never what they are."""

from __future__ import annotations

import streamlit as st

from nano_vm.errors import NanoVMError
from nano_vm.observe.wording import moment
from nano_vm.policy.model import Policy, Rule
from nano_vm.studio.frame import (
    command,
    empty,
    follow,
    guarded,
    library,
    meter,
    run_link,
    settings,
    show_error,
)
from nano_vm.studio.markup import Markup, chip, code, digest, join, soft, table, tag
from nano_vm.studio.view import show

ERASURES = 50


@guarded
def page() -> None:
    st.markdown("# Policies and vault")
    counted = meter()
    complete = counted.advance()
    if not complete:
        st.caption(f"Reading the journals: {counted.entries:,} entries so far.")
    _policies()
    _decisions()
    _vault()
    _erasures()


def _policies() -> None:
    counted = meter()
    in_force = settings().policy
    known: dict[str, Policy] = dict(library().policies(list(counted.policies)))
    if in_force is not None:
        known[in_force.hash] = in_force
    if not known:
        empty(
            "No policy",
            "No run is pinned to one, and none is in force here.",
            code(command("studio", "--policy", "FILE")),
            key="nopolicy",
        )
        return
    for policy_hash, policy in known.items():
        here = (
            chip("allow", "in force here") if in_force is not None and policy_hash == in_force.hash else None
        )
        runs = soft(f"{counted.policies.get(policy_hash, 0):,} runs are pinned to it")
        head = tag(
            "div",
            tag("span", policy.name, class_="lead"),
            soft(policy.version),
            here,
            runs,
            digest(policy_hash),
            class_="row",
        )
        default = chip(
            "allow" if policy.allows_by_default else "deny", "allow" if policy.allows_by_default else "deny"
        )
        last = (code("default"), default, soft("whatever no rule is about"), "", "")
        rows = [*(_rule(rule) for rule in policy.rules), last]
        show(
            tag(
                "div",
                head,
                table(("Rule", "Decides", "About", "When", "Requires and limits"), rows),
                class_="card",
            ),
            f"policy:{policy_hash}",
        )


def _rule(rule: Rule) -> tuple[Markup, Markup, str, Markup, str]:
    about = ", ".join((*rule.tools, *(f"model {name}" for name in rule.models)))
    more = [f"{need.kind} {need.name} before" for need in rule.requires]
    if rule.approval is not None:
        eyes = ", not by whoever started the run" if rule.approval.four_eyes else ""
        more.append(f"approval by {rule.approval.count} of {', '.join(rule.approval.roles)}{eyes}")
    more += [
        f"at most {limit.maximum:,} calls"
        if limit.path is None
        else f"at most {limit.maximum / 1e6:,g} of {'.'.join(limit.path)}"
        for limit in rule.limits
    ]
    return (
        code(rule.id),
        chip(rule.decision, rule.decision),
        about,
        code(rule.source) if rule.source else soft("always"),
        "; ".join(more),
    )


def _decisions() -> None:
    counted = meter()
    if not counted.decisions and not counted.refusals:
        return
    st.markdown("## What was decided")
    rows = [
        (chip(decision, decision), code(rule), f"{times:,}")
        for (decision, rule), times in sorted(counted.decisions.items(), key=lambda each: -each[1])
    ]
    rows += [
        (chip("deny", "refused"), code(reason), f"{times:,}") for reason, times in counted.refusals.items()
    ]
    show(table(("Decision", "Rule or reason", "Times"), rows, numeric=(2,)), "decisions")


def _vault() -> None:
    st.markdown("## Vault")
    listed = settings().secrets
    if listed is None:
        empty(
            "No vault",
            "Secrets and the keys of private values are kept beside the database.",
            code(command("vault", "init")),
            key="novault",
        )
        return
    try:
        secrets = listed()
    except NanoVMError as error:
        show_error(error, "vault_error")
        return
    if not secrets:
        empty(
            "No secrets",
            "The vault is there, and holds none.",
            code(command("vault", "put", "NAME")),
            key="nosecrets",
        )
        return
    rows = (
        (
            code(secret.reference),
            ", ".join(secret.tools) or "any tool that declares a secret",
            moment(secret.changed_at_ms),
            chip("ask", "legal hold") if secret.held else "",
        )
        for secret in secrets
    )
    show(table(("Secret", "May be opened by", "Changed", ""), rows), "secrets")
    st.caption("Values are never shown: no page of the studio can open them.")


def _erasures() -> None:
    erased = meter().erased
    if not erased:
        return
    st.markdown("## Erasures")
    rows = ((run_link(run_id), reason, moment(at_ms)) for run_id, reason, at_ms in erased[-ERASURES:][::-1])
    follow(show(table(("Run", "Reason", "When"), rows), "erasures"))
    show(
        join(
            (
                soft("What was erased shows as "),
                code("[REDACTED_TOMBSTONE]"),
                soft(" everywhere, and every hash still verifies."),
            )
        ),
        "tombstones",
    )
