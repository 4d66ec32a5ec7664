"""What every journal store must keep, as tests that anybody can run over a store of their own.

    from nano_vm.testing.store_conformance import SharedStoreConformance

    class TestMyStore(SharedStoreConformance):
        def open_store(self, place):                # called several times with the same place: several owners
            return MyStore(place / "journal.db")

pytest collects the inherited tests. A store that lives in one process only derives from `StoreConformance`.
Nothing here needs pytest itself; a test's only argument is pytest's `tmp_path`.
"""

from __future__ import annotations

from nano_vm.testing.store_conformance.alone import StoreConformance
from nano_vm.testing.store_conformance.draft import NOW, Draft, refusal, settle
from nano_vm.testing.store_conformance.shared import SharedStoreConformance

__all__ = ["NOW", "Draft", "SharedStoreConformance", "StoreConformance", "refusal", "settle"]
