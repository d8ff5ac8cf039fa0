"""Make the pictures of the documentation: plots of real runs, and screenshots of the dashboard.

    python docs/pictures.py             # everything, into docs/pictures; about three minutes on two cores
    python docs/pictures.py kills       # the loss of a run that loses three ranks, and of the same run undisturbed
    python docs/pictures.py plots       # curves and a confusion matrix of a run whose ranks are killed (matplotlib)
    python docs/pictures.py dashboard   # screenshots, light and dark (chromium, or the browser in $CHROMIUM)

The runs are made with ``ddl launch`` in a temporary folder. What a missing program would draw is left out, with a
line."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from ddl.dashboard import Dashboard
from ddl.metrics.plots import THEMES as LOOKS
from ddl.metrics.plots import smooth
from ddl.wording import counted

PICTURES = Path(__file__).parent / "pictures"
THEMES = ("light", "dark")
MLP = ("--model.name=mlp", "--train.compiled=off")
KILLED = ("--model.metrics=accuracy,confusion", "--fault.chaos=kill rank 1 at step 150; kill rank 3 at step 420")
THREE_KILLS = "kill rank 2 at step 100; kill rank 1 at step 220; kill rank 3 at step 340"
COMPARED = [("adam", 0.0005), ("adam", 0.002), ("momentum", 0.01), ("momentum", 0.05), ("rmsprop", 0.001)]


def start(folder: Path, ranks: int, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ddl.launch", "-n", str(ranks), *MLP, f"--run.dir={folder}", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def train(folder: Path, ranks: int, *words: str) -> None:
    """Train to the end. Raises RuntimeError."""
    with start(folder, ranks, *words) as job:
        if job.wait(600):
            raise RuntimeError(f"the job in {folder} ended with {job.returncode}")


def kills(runs: Path) -> None:
    """kills.png: one job twice, undisturbed and with three of its four ranks killed."""
    words = ("--run.name=digits", "--train.epochs=24", "--optim.lr=5e-4", "--metrics.plots=off")
    train(runs / "undisturbed", 4, *words)
    train(runs / "three-kills", 4, *words, f"--fault.chaos={THREE_KILLS}")
    draw_kills(events(runs / "undisturbed"), events(runs / "three-kills"), PICTURES / "kills.png")


def events(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def draw_kills(undisturbed: list[dict[str, Any]], killed: list[dict[str, Any]], path: Path) -> None:
    """Plot the training losses of both runs over each other, with the kills and the recovery times of the second.

    A recovery time counts from the death of the rank until the others have its shards."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    look = LOOKS["light"]
    calm, shaken = ({e["step"]: e["loss"] for e in run if e["event"] == "step"} for run in (undisturbed, killed))
    difference = max(abs(calm[step] - shaken[step]) for step in calm.keys() | shaken.keys())
    mantissa, exponent = f"{difference:.1e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    failures = {e["step"]: e["rank"] for e in killed if e["event"] == "failure"}
    seconds = {e["step"]: e["seconds"] + e["phases"]["detect"] for e in killed if e["event"] == "recovery"}
    figure = Figure(figsize=(8.4, 3.6), dpi=200, facecolor=look.paper)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0.075, 0.125, 0.905, 0.635), facecolor=look.paper)
    own = axis.plot(list(shaken), smooth(list(shaken.values())), color=look.first, alpha=0.45, linewidth=6)
    other = axis.plot(list(calm), smooth(list(calm.values())), color=look.text, linewidth=1.3, dashes=(4, 3))
    axis.set(xlim=(0, max(calm) + 5), yscale="log", ylim=(0.02, 5), xlabel="step", ylabel="training loss (smoothed)")
    axis.set_yticks([0.03, 0.1, 0.3, 1], ["0.03", "0.1", "0.3", "1"])
    axis.minorticks_off()
    axis.grid(axis="y", color=look.grid, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=look.dim, labelsize=8.5, length=0)
    axis.xaxis.label.set_color(look.dim), axis.yaxis.label.set_color(look.dim)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(look.grid)

    above = {"transform": axis.get_xaxis_transform(), "ha": "center"}
    for step, rank in failures.items():
        axis.axvline(step, color=look.bad, linewidth=1.2)
        text = f"rank {rank} killed\nrecovered after {1000 * seconds[step]:.0f} ms"
        axis.text(step, 1.035, text, **above, va="bottom", color=look.bad, fontsize=8.5, linespacing=1.35)
    for lost, (left, right) in enumerate(pairwise([0, *failures, max(calm)])):
        text = counted(4 - lost, "rank")
        axis.text((left + right) / 2, 0.95, text, **above, va="top", color=look.dim, fontsize=9)
    title = f"Three of four ranks killed: the loss of a step changes by {mantissa} × 10{power} at most"
    figure.text(0.0185, 0.965, title, fontsize=11, fontweight="bold", color=look.text, va="top")
    labels = ["three ranks killed", "undisturbed"]
    axis.legend(
        [*own, *other],
        labels,
        loc="center",
        bbox_to_anchor=(0.58, 0.62),
        frameon=False,
        fontsize=9,
        labelcolor=look.text,
        handlelength=3.2,
    )
    figure.savefig(path)
    Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)  # a third of the size


def plots(runs: Path) -> None:
    """curves.png and confusion.png in both themes; the job itself draws them."""
    words = ("--run.name=digits", "--train.epochs=40", "--metrics.plots=on", "--metrics.plots_theme=both", *KILLED)
    train(runs / "killed", 4, *words)
    for path in sorted((runs / "killed").glob("*.png")):
        shutil.copy(path, PICTURES / path.name)


def dashboard(runs: Path) -> None:
    """A run with kills while it trains, and several runs compared."""
    for name, rate in COMPARED:
        words = f"--run.name={name}-{rate:g}", f"--optim.name={name}", f"--optim.lr={rate}", "--train.epochs=15"
        train(runs / "compared" / f"{name}-{rate:g}", 1, *words)
    screenshots(runs / "compared", "dashboard-compare")
    words = ("--run.name=digits", "--train.epochs=400", *KILLED)
    with start(runs / "live", 4, *words) as job:
        wait_for(lambda: (text := read(runs / "live" / "metrics.jsonl")).count("recovery") > 1 and len(text) > 120_000)
        screenshots(runs / "live", "dashboard")
        job.terminate()


def screenshots(folder: Path, name: str) -> None:
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print(f"no {name}.png: there is no chromium (name a browser in CHROMIUM)", file=sys.stderr)
        return
    served = Dashboard(folder)
    threading.Thread(target=served.serve, daemon=True).start()
    try:
        for theme in THEMES:
            picture = PICTURES / f"{name}{'-dark' * (theme == 'dark')}.png"
            flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1400,1340"
            command = [browser, *flags.split(), "--virtual-time-budget=6000", f"--screenshot={picture}"]
            subprocess.run(
                [*command, f"{served.url}?theme={theme}"], check=True, stderr=subprocess.DEVNULL, timeout=180
            )
    finally:
        served.close()


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def wait_for(condition: Callable[[], bool], limit_s: float = 300.0) -> None:
    ends = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"nothing of it in {limit_s:g} s")
        time.sleep(0.5)


PARTS = {"kills": kills, "plots": plots, "dashboard": dashboard}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=[*PARTS, "all"], default="all")
    wanted = parser.parse_args().what
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as runs:
        for name, make in PARTS.items():
            if wanted in (name, "all"):
                make(Path(runs))
    print("\n".join(str(path) for path in sorted(PICTURES.glob("*.png"))))


if __name__ == "__main__":
    main()
