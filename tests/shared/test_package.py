import subprocess
import sys


def test_the_wait_policy_is_set_before_pytorch_is_loaded():
    code = "import os, sys, services.app; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "PASSIVE"]
