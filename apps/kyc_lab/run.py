"""The KYC laboratory as a script: the same as `nano-vm demo kyc`.

python apps/kyc_lab/run.py                          one honest applicant, reviewed by hand and by nano-vm
python apps/kyc_lab/run.py --inject tool_injection  an attack on both
python apps/kyc_lab/run.py --inject all --json
"""

from __future__ import annotations

import sys

from nano_vm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["demo", "kyc", *sys.argv[1:]]))
