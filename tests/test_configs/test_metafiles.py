"""Results pages: every config once, every row true, every address well-formed."""

import json
import re
from urllib.parse import urlparse

import pytest
import yaml

from helpers.paper_configs import CONFIGS
from helpers.tool_runs import ROOT

METAFILES = sorted(ROOT.glob("configs/*/metafile.yml"))
QUICKSTART = sorted(ROOT.glob("configs/quickstart/*.py"))
MODELS = [
    (path, entry)
    for path in METAFILES
    for entry in yaml.safe_load(path.read_text())["Models"]
]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("configs/*/README.md")])
PAGES += sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("projects/**/*.md")])
WEIGHTS = "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/"
ADDRESS = re.compile(r"https://(?:arxiv\.org/abs/\d{4}\.\d{5}|[\w.-]+\.\w+/\S+\.pth)")
# The files of the paper's authors, by their own names.
RELEASED = {f"RAVLT_{size}.pth" for size in "TSBL"}
RELEASED |= {f"retinanet_{size}_1x_12_epoch.pth" for size in "tsbl"}
RELEASED |= {f"maskrcnn_{size}_1x_12_epoch.pth" for size in "tsbl"}
RELEASED |= {f"maskrcnn_{size}_3x_36_epoch.pth" for size in "sbl"}
RELEASED |= {f"Casmaskrcnn_{size}_3x_36_epoch.pth" for size in "sbl"}
RELEASED |= {f"fpn_{size}_1x.pth" for size in "tsbl"}
RELEASED |= {f"uper_{size}_2x.pth" for size in "sbl"}

rows = pytest.mark.parametrize(
    ("path", "entry"), MODELS, ids=[entry["Name"] for _, entry in MODELS]
)


def test_the_index_imports_every_metafile():
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    assert sorted(index["Import"]) == [str(p.relative_to(ROOT)) for p in METAFILES]


def test_every_config_is_in_one_metafile():
    listed = [entry["Config"] for _, entry in MODELS if "Config" in entry]
    assert sorted(listed) == sorted(
        str(path.relative_to(ROOT)) for path in [*CONFIGS, *QUICKSTART]
    )


def test_every_released_file_is_named_once():
    named = [entry["Weights"] for _, entry in MODELS if "Weights" in entry]
    assert sorted(named) == sorted(WEIGHTS + name for name in RELEASED)


@rows
def test_row(path, entry):
    folder = path.parent
    collections = yaml.safe_load(path.read_text())["Collections"]
    assert entry["In Collection"] in [c["Name"] for c in collections]
    page = (ROOT / entry.get("README", f"configs/{folder.name}/README.md")).read_text()
    if "Config" in entry:
        config = ROOT / entry["Config"]
        assert config.is_file()
        assert config.stem == entry["Name"]
        assert config.parent == folder
        assert config.name in page
    source = entry["Metadata"]["Results Source"]
    kind = source.split()[0].rstrip(",").lower()
    stated = [
        value
        for key, value in entry["Metadata"].items()
        if key.startswith(("Parameters", "FLOPs"))
    ]
    if stated:
        mark = entry.get("Weights", f"]({entry['Name']}.py)")
        (line,) = [x for x in page.splitlines() if mark in x]
        assert all(f"| {value} |" in line for value in stated)
    if kind == "none":
        assert "Results" not in entry
        assert "Weights" not in entry
        return
    assert entry["Results"]
    if kind == "paper":
        assert "not reproduced" in source
        size = re.search(r"ravlt[-_]([tsbl])[_.]", entry["Name"])[1]
        file = entry["Weights"].rpartition("/")[2]
        assert re.search(r"[_]([a-zA-Z])[_.]", file)[1].lower() == size
        (line,) = [x for x in page.splitlines() if entry["Weights"] in x]
        assert "| paper |" in line
        for result in entry["Results"]:
            for value in result["Metrics"].values():
                assert f"| {value} |" in line
    else:
        assert kind == "ours"
        assert f"tools/train.py {entry['Config']}" in source
        log = ROOT / entry["Training Log"]
        assert log.is_file()
        (line,) = [x for x in page.splitlines() if x.startswith(f"| [{entry['Name']}]")]
        assert line.endswith(f"| ours, [log]({log.relative_to(folder)}) |")
        logged = {}
        for text in log.read_text().splitlines():
            logged |= json.loads(text)
        percent = {"coco/bbox_mAP": 100, "coco/segm_mAP": 100, "mIoU": 1}
        found = [round(logged[k] * n, 1) for k, n in percent.items() if k in logged]
        assert found == [v for r in entry["Results"] for v in r["Metrics"].values()]


@pytest.mark.parametrize("path", METAFILES, ids=lambda path: path.parent.name)
def test_addresses_of_metafiles(path):
    content = yaml.safe_load(path.read_text())
    for entry in content["Collections"] + content["Models"]:
        addresses = [entry[key] for key in ("Weights",) if key in entry]
        addresses += [entry[key]["URL"] for key in ("Paper",) if key in entry]
        for address in addresses:
            assert ADDRESS.fullmatch(address), address
        assert (ROOT / entry.get("README", "README.md")).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        url = urlparse(link)
        if url.scheme:
            assert url.scheme == "https", link
            assert "." in url.netloc, link
            assert "/blob/" not in link or url.netloc != "huggingface.co", link
            continue
        target = page.parent / url.path if url.path else page
        assert target.exists(), link
        if url.fragment:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {
                re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings
            }
            assert url.fragment in anchors, link
