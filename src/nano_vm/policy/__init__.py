"""Policies: what a run may do, decided by pure functions of data (SPEC §9, `spec/policy.md`)."""

from __future__ import annotations

from nano_vm.policy.check import check as check
from nano_vm.policy.check import compile_checked as compile_checked
from nano_vm.policy.decide import Decision as Decision
from nano_vm.policy.decide import Request as Request
from nano_vm.policy.decide import action_digest as action_digest
from nano_vm.policy.decide import counters as counters
from nano_vm.policy.decide import decide as decide
from nano_vm.policy.decide import decide_all as decide_all
from nano_vm.policy.decide import explain as explain
from nano_vm.policy.fields import policy_schema as policy_schema
from nano_vm.policy.load import PolicyReport as PolicyReport
from nano_vm.policy.load import check_policy as check_policy
from nano_vm.policy.load import load_policy as load_policy
from nano_vm.policy.load import stored_policy as stored_policy
from nano_vm.policy.model import Policy as Policy
from nano_vm.policy.model import Requirement as Requirement
