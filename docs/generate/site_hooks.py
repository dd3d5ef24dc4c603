"""What MkDocs calls while it builds the site: pages that are generated, pages that lie elsewhere, and links."""

from __future__ import annotations

import re
from pathlib import Path

from links import Links
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebooks import notebook_page
from reference import reference_pages
from settings_page import settings_page
from verbs import command_line_page

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {
    "offline-batch-recsys/Offline-Batch-Recommender-System.ipynb": "examples/offline-batch-notebook.md",
    "multi-stage/01-Building-Online-Multi-Stage-Recsys-Components.ipynb": "examples/multi-stage-components.md",
    "multi-stage/02-Deploying-Online-Multi-Stage-Recsys-with-Triton.ipynb": "examples/multi-stage-triton.md",
    "large-scale-recsys/Large-Scale-Recommender-System.ipynb": "examples/large-scale-notebook.md",
}
ELSEWHERE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "data/README.md": "data.md",
    "docker/README.md": "operations/containers.md",
    "monitoring/README.md": "operations/dashboards.md",
}
EXAMPLES = {
    f"{folder}/README.md": f"examples/{folder}.md"
    for folder in ("offline-batch-recsys", "multi-stage", "large-scale-recsys", "cloud-deployment")
}
SOURCES = {page: source for source, page in (ELSEWHERE | NOTEBOOKS).items()}
GENERATED = {"settings.md": settings_page, "command-line.md": command_line_page}
MARK = "<!-- generated -->"
REFERENCE = "Library reference"
LOADS = re.compile(r"""<(?:script|img|iframe|source|link)[^>]*\s(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):<code>")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages of the library reference in the navigation."""
    (reference,) = (item for item in config.nav or [] if REFERENCE in item)
    reference[REFERENCE] += [
        {name: page} for name, page in sorted((Path(page).stem, page) for page in reference_pages(ROOT))
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of ``docs/``, and all pictures."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for source, page in NOTEBOOKS.items():
        text, pictures = notebook_page(ROOT / source, Path(page).stem)
        files.append(File.generated(config, page, content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"{Path(page).parent}/{name}", content=content))
    for page, text in reference_pages(ROOT).items():
        files.append(File.generated(config, page, content=text))
    for picture in sorted((ROOT / "assets").glob("*.png")):
        files.append(File.generated(config, f"assets/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what is generated, and point links to pages of the site."""
    generate = GENERATED.get(page.file.src_uri)
    if generate:
        before, after = markdown.split(MARK)
        markdown = before + generate() + after
    uri = page.file.src_uri
    source = SOURCES.get(uri, f"docs/{uri}")
    pages = {f"docs/{file.src_uri}": file.src_uri for file in files.documentation_pages()}
    results = {f"{Path(source).parent}/{file.name}.png": file.src_uri for file in files.media_files()
               if file.name.startswith(f"{page.file.name}-")}  # fmt: skip
    try:
        return Links(ROOT, pages | results | ELSEWHERE | NOTEBOOKS | EXAMPLES, config.repo_url).on_site(
            markdown, source, uri
        )
    except FileNotFoundError as error:
        raise PluginError(str(error)) from None


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take out of docstrings what is reStructuredText: roles in front of names, colons in front of blocks."""
    return ROLE.sub("<code>", html).replace("<p>::</p>", "") if page.file.src_uri.startswith("reference/") else html


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that loads something from the internet, but for its own address in ``rel="canonical"``."""
    for address in LOADS.findall(output):
        if not (config.site_url and address.startswith(config.site_url)):
            raise PluginError(f"{page.file.src_uri} loads {address}: the site has to work without the internet")
    return output
