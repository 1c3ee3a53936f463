"""
Fetch transformers' own test mixins.

They are not in the installed package but in its source distribution. This downloads the one of the installed version
to `.transformers-source/` (once) and adds stand-ins for the few modules that the mixins import and the distribution
leaves out. Run by `make test-transformers`.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers


SOURCES = Path(__file__).resolve().parents[2] / ".transformers-source"
SOURCE = SOURCES / f"transformers-{transformers.__version__}"

# Path below the distribution -> content. Only what an import needs: none of it is used by tests of a vision backbone.
STAND_INS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    "tests/utils/tiny_model_summary.json": "{}",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}

# The names that ConfigTester sets, with values other than the defaults.
STAND_INS["tests/utils/test_configuration_utils.py"] = """
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
"""


def download():
    with tempfile.TemporaryDirectory() as folder:
        requirement = f"transformers=={transformers.__version__}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*command, "--dest", folder, requirement], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            # The filter argument is older than Python 3.12 only in patch releases; without it the archive is trusted.
            options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(SOURCES, **options)


def main():
    if not (SOURCE / "tests" / "test_modeling_common.py").is_file():
        print(f"Fetching the source distribution of transformers {transformers.__version__}")
        download()
    for name, content in STAND_INS.items():
        path = SOURCE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


if __name__ == "__main__":
    main()
