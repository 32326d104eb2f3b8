import subprocess
import sys

import biobracket


def test_importing_it_loads_nothing_heavy():
    heavy = ("torch", "ray", "numpy", "transformers", "kafka", "redis", "fastapi", "spacy")
    code = f"import biobracket, sys; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_every_name_is_there():
    assert all(hasattr(biobracket, name) for name in biobracket.__all__)
