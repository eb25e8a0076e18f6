"""python -m kvferry explain: what it says is what the plans are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from conftest import ROOT

import kvferry
from kvferry import DenseLayers, Group, Layout, Parallel, Region, StateLayers, SubProjection, explain
from kvferry._explain import facts, svg, text, words

SVG = "{http://www.w3.org/2000/svg}"


def explained(capsys, *arguments: str) -> str:
    assert explain.main([*arguments, "--width", "100"]) == 0
    return capsys.readouterr().out


def reads(output: str) -> list[tuple[str, str, str]]:
    """The rows of the table: decode rank, prefill rank, heads."""
    rows, rank = [], ""
    for line in output.splitlines():
        if m := re.match(r"(D\S+)?\s+(P\S+)\s+((?:heads? |channels? )?\S+)\s+\d", line):
            rank = m[1] or rank
            rows.append((rank, m[2], m[3]))
    return rows


@pytest.mark.parametrize(("arguments", "wanted"), [
    ("--prefill-tp 4 --decode-tp 2",
     [("D0", "P0", "heads 0–1"), ("D0", "P1", "heads 2–3"), ("D1", "P2", "heads 4–5"), ("D1", "P3", "heads 6–7")]),
    ("--prefill-tp 2 --decode-tp 4",
     [("D0", "P0", "heads 0–1"), ("D1", "P0", "heads 2–3"), ("D2", "P1", "heads 4–5"), ("D3", "P1", "heads 6–7")]),
    # Two heads on four ranks: each is there twice, and one of the two is read.
    ("--kv-heads 2 --prefill-tp 4 --decode-tp 2", [("D0", "P0", "head 0"), ("D1", "P2", "head 1")]),
    ("--mla --prefill-tp 4 --decode-tp 2", [("D0", "P0", "whole"), ("D1", "P2", "whole")]),
    ("--push --prefill-tp 2 --decode-tp 1", [("D0", "P0", "heads 0–3"), ("D0", "P1", "heads 4–7")]),
    # Every other block is on the other rank.
    ("--kv-heads 1 --prefill-tp 2 --prefill-dcp 2 --decode-tp 1", [("D0", "P0", "whole"), ("D0", "P1", "whole")]),
    ("--prefill-tp 1 --prefill-pp 2 --decode-tp 1", [("D0", "P0.0", "heads 0–7"), ("D0", "P0.1", "heads 0–7")]),
])
def test_who_reads_what_from_whom(capsys, arguments, wanted):
    assert reads(explained(capsys, *arguments.split())) == wanted


def test_the_figures(capsys):
    """16 tokens of 2 heads of 128 elements of 2 bytes are 8 KiB for K and 8 for V, in each of 4 layers."""
    out = explained(capsys, "--prefill-tp", "4", "--decode-tp", "2", "--layers", "4")
    assert re.search(r"D0 +P0 +heads 0–1 +4 +8 +64 KiB", out), out
    assert "copies and bytes are per 16 tokens" in out
    out = explained(capsys, "--layers", "4", "--prefill-block-size", "16", "--decode-block-size", "64")
    # 64 tokens of 8 heads: 4 blocks there, one here; 4 copies for each head, of K and of V, in each layer.
    assert re.search(r"D0 +P0 +heads 0–7 +4 +256 +1 MiB", out), out
    assert "prefill blocks of 16 tokens; decode blocks of 64 tokens" in out


def test_the_drawing(capsys):
    """The ranks that a decode rank reads are those above it."""
    lines = explained(capsys, "--prefill-tp", "4", "--decode-tp", "2").splitlines()
    def of(mark):
        return next(line for line in lines if mark in line)

    top, bottom = of("prefill TP 4  │"), of("│              D0")
    edges = [i for i, c in enumerate(bottom) if c == "│"]
    assert len(edges) == 3
    assert edges[0] < top.index("P0") < top.index("P1") < edges[1] < top.index("P2") < top.index("P3") < edges[2]
    parts = of("from P0")
    assert abs(parts.index("P0") - top.index("P0")) < 6 and parts.count("┊") == 2
    # Every line of boxes is as wide as the others.
    widths = {len(line) for line in lines if line.endswith(("│", "┐", "┘"))}
    assert len(widths) == 1


@pytest.mark.parametrize(("arguments", "wanted"), [
    ("--prefill-tp 4 --decode-tp 2", "it takes two prefill ranks to fill it"),
    ("--prefill-tp 2 --decode-tp 8", "a prefill rank serves four"),
    ("--kv-heads 2 --prefill-tp 4 --decode-tp 2", "two ranks hold the same, and a decode rank reads one of them"),
    ("--kv-heads 2 --prefill-tp 2 --decode-tp 8", "four ranks hold the same, and each of them reads"),
    ("--mla --prefill-tp 4 --decode-tp 2", "Two prefill ranks are not read"),
    ("--kv-heads 2 --prefill-tp 4 --prefill-dcp 2 --decode-tp 2", "dealt out over two prefill ranks"),
    ("--prefill-pp 2", "spread over two pipeline stages"),
    ("", "gets all of its heads from one prefill rank"),
])
def test_why(capsys, arguments, wanted):
    assert wanted in explained(capsys, *arguments.split()).replace("\n", " ")


def test_who_is_only_told(capsys):
    out = explained(capsys, "--mla", "--prefill-tp", "4", "--decode-tp", "2")
    assert "P1 is read by nobody; D0 tells it when the blocks are free" in out
    assert "P3 is read by nobody; D1 tells it when the blocks are free" in out
    assert "(P1)" in out and "(P0)" not in out


def test_colours_and_narrow_terminals(capsys):
    plain = explained(capsys, "--prefill-tp", "4", "--decode-tp", "2")
    assert "\x1b" not in plain
    coloured = explained(capsys, "--prefill-tp", "4", "--decode-tp", "2", "--color", "always")
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    out = explained(capsys, "--kv-heads", "64", "--prefill-tp", "64", "--decode-tp", "1")
    assert "too many ranks to draw" in out and len(reads(out)) == 64


def hybrid(tp: int, base: int) -> list[Layout]:
    ranks = []
    for r in range(tp):
        at = [Region(base + (r * 100 + i) * (1 << 32), 8) for i in range(3)]
        ranks.append(Layout(
            Parallel(r, tp), [Group("full", 16), Group("state")],
            dense=[DenseLayers(4, 64, 2, at[:2], order="hnd", kv="planes", layers=[0, 2])],
            state=[StateLayers(8, 256, 4, at[2:], [SubProjection(16), SubProjection(4, 4)], 3, 2,
                               group=1, layers=[1])],
        ))
    return ranks


def test_layouts_in_files(tmp_path, capsys):
    names = {}
    for side, tp in (("prefill", 2), ("decode", 1)):
        names[side] = []
        for i, layout in enumerate(hybrid(tp, 1 << 40)):
            path = tmp_path / f"{side}{i}.kvl"
            path.write_bytes(layout.encode())
            names[side].append(str(path))
    out = explained(capsys, "--prefill", *names["prefill"], "--decode", *names["decode"])
    assert "K and V of 4 heads, 2 layers" in out and "SSM of 8 heads, 1 layer" in out
    # Both sub-projections are 16 channels, dealt out alike: one panel.
    assert "Conv 0 and conv 1 of 16 channels, 1 layer" in out
    assert ("D0", "P1", "channels 8–15") in reads(out)
    (tmp_path / "bad.kvl").write_bytes(b"KVFL\x01nonsense")
    assert explain.main(["--prefill", str(tmp_path / "bad.kvl"), "--decode", names["decode"][0]]) == 1
    assert "bad.kvl" in capsys.readouterr().err
    assert explain.main(["--prefill", str(tmp_path / "none"), "--decode", names["decode"][0]]) == 1
    assert "none" in capsys.readouterr().err


def test_json_is_the_librarys(capsys):
    out = explained(capsys, "--json", "--prefill-tp", "2", "--decode-tp", "4", "--layers", "2")
    plans = json.loads(out)
    assert [p["local"]["tp_rank"] for p in plans] == [0, 1, 2, 3]
    assert [[x["role"] for x in p["peers"]] for p in plans[:3:2]] == [["transfer", "idle"], ["idle", "transfer"]]


@pytest.mark.parametrize(("arguments", "wanted"), [
    (["--prefill-tp", "3"], "heads 8 and tp_size 3"),
    (["--prefill-block-size", "48", "--decode-block-size", "32"], "tokens per kernel block: local 32, remote 48"),
    (["--kv-heads", "8", "--prefill-kv", "slabs", "--decode-kv", "planes"], "D0: "),
])
def test_what_cannot_be_planned(capsys, arguments, wanted):
    assert explain.main(arguments) == 1
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [
    ["--kv-heads", "0"], ["--layers", "x"], ["--prefill", "one"], ["--order", "dhn"], ["--nonsense"],
])
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as e:
        explain.main(arguments)
    assert e.value.code == 2
    assert "usage:" in capsys.readouterr().err


def gathered(**options) -> facts.Facts:
    parser = explain._parser().parse_args([
        item for name, value in options.items() for item in (f"--{name.replace('_', '-')}", str(value))])
    return facts.gather(*(explain._made_up(parser, side) for side in ("prefill", "decode")))


@pytest.mark.parametrize("options", [
    {"prefill_tp": 4, "decode_tp": 2}, {"prefill_tp": 2, "decode_tp": 8, "kv_heads": 4},
    {"mla": 512, "prefill_tp": 4, "decode_tp": 2}, {"kv_heads": 2, "prefill_tp": 4, "prefill_dcp": 2},
    {"kv_heads": 64, "prefill_tp": 64, "decode_tp": 1}, {"prefill_pp": 3},
])
def test_the_picture(options):
    """Well-formed, nothing outside it, an arrow for each flow, and the bands of a decode rank in the
    colours of the ranks that it reads."""
    told = gathered(**options)
    root = ET.fromstring(svg.picture(told))
    width, height = float(root.get("width")), float(root.get("height"))
    for rect in root.findall(f"{SVG}rect"):
        assert -1 <= float(rect.get("x", 0)) and float(rect.get("x", 0)) + float(rect.get("width")) <= width + 1
        assert float(rect.get("y", 0)) + float(rect.get("height")) <= height + 1
    for label in root.findall(f"{SVG}text"):
        assert 0 <= float(label.get("x")) <= width and 0 < float(label.get("y")) < height
    arrows = [p for p in root.findall(f"{SVG}path") if p.get("fill-opacity") == "0.9"]
    parts = sum(len(p.sources) for panel in told.panels for d in panel.decode for p in text._parts(panel, d))
    assert len(arrows) == parts
    labels = [t.text for t in root.findall(f"{SVG}text")]
    assert all(r.label in labels for r in [*told.prefill, *told.decode])
    bands = {r.get("fill") for r in root.findall(f"{SVG}rect")}
    read = {s for panel in told.panels for d in panel.decode for s in panel.sources(d)}
    assert {svg._colour(s) for s in read} <= bands
    assert ("url(#unread)" in bands) == (len(read) < len(told.prefill))


def test_the_facts_are_the_plans():
    """Each head of each decode rank once, from a rank that holds it."""
    for options in ({"prefill_tp": 4, "decode_tp": 2}, {"prefill_tp": 2, "decode_tp": 8, "kv_heads": 4},
                    {"prefill_tp": 8, "decode_tp": 2, "kv_heads": 4}):
        told = gathered(**options)
        [panel] = told.panels
        for target, spans in panel.decode.items():
            wanted = sorted(h for first, n in spans for h in range(first, first + n))
            flows = [f for f in panel.flows if f.target == target]
            assert sorted(h for f in flows for h in range(f.head_first, f.head_end)) == wanted
            for f in flows:
                [(first, n)] = panel.prefill[f.source]
                assert first <= f.head_first and f.head_end <= first + n


def test_numbers_in_words():
    assert [words.size(n) for n in (0, 512, 1024, 1536, 3 << 20, 5 << 40)] == [
        "0 B", "512 B", "1 KiB", "1.5 KiB", "3 MiB", "5120 GiB"]


def test_the_picture_in_the_docs_is_fresh():
    fresh = svg.picture(gathered(prefill_tp=4, decode_tp=2))
    committed = (ROOT / "docs" / "images" / "tp4-tp2.svg").read_text()
    assert committed == fresh, (
        "run python -m kvferry explain --prefill-tp 4 --decode-tp 2 --svg docs/images/tp4-tp2.svg"
    )


def test_the_command(tmp_path):
    picture = tmp_path / "plan.svg"
    done = subprocess.run(
        [sys.executable, "-m", "kvferry", "explain", "--prefill-tp", "4", "--decode-tp", "2", "--svg", str(picture)],
        capture_output=True, text=True, timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "┐" in done.stdout and "\x1b" not in done.stdout
    assert ET.parse(picture).getroot().tag == f"{SVG}svg"
    for arguments, code, wanted in [
        ([], 2, "usage: python -m kvferry"), (["--help"], 0, "doctor"), (["--version"], 0, kvferry.__version__),
        (["juggle"], 2, "no command 'juggle'"), (["explain", "--help"], 0, "--prefill-tp"),
        (["doctor", "--help"], 0, "--transport"),
    ]:
        done = subprocess.run([sys.executable, "-m", "kvferry", *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == code and wanted in done.stdout + done.stderr, arguments
