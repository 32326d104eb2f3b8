import subprocess
import sys


def test_waiting_threads_do_not_spin_since_the_setting_stands_before_pytorch_is_loaded():
    code = "import os, sys, services.app; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "PASSIVE"]
