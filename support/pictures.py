"""This module draws pictures with matplotlib, and makes the page for the browser that shows maps."""

import base64
import io
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support.errors import UserError
from support.files import replacing
from support.tables import ACCURACIES, Tables, columns_of, title_of


def new_figure(path: str, width: float, height: float) -> Any:
    """Makes an empty matplotlib figure of this size in inches, without a window, for `save`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("pictures need matplotlib; install it with: pip install matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    if Path(path).suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise UserError(f"the format of {path} is unknown; use a name that ends in .png, .svg or .pdf")
    return figure


def save(figure: Any, path: str) -> None:
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=150)
    print(f"drawn: {path}")


def draw_gains(tables: Tables, path: str) -> None:
    """Draws gains over the baseline with their standard deviation over seeds.

    There is a panel for each table, a row for each teacher, and a dot for each column. If each table has a different
    number of training images, the gains are drawn against this number instead.
    """
    numbers = {dict(shared).get("train_images") for shared in tables}
    if len(tables) > 1 and len(numbers) == len(tables) and None not in numbers:
        return draw_gains_by_images(tables, path)
    heights = [1.2 + 0.25 * len(rows) for rows in tables.values()]
    figure = new_figure(path, 9, sum(heights))
    panels = figure.subplots(len(tables), squeeze=False, height_ratios=heights).flat
    for panel, (shared, rows) in zip(panels, tables.items(), strict=True):
        for column in columns_of(rows):
            if column not in ACCURACIES:
                gains = [row.get(column, [math.nan]) for row in rows.values()]  # NaN draws no dot.
                means, spreads = list(map(statistics.mean, gains)), list(map(deviation, gains))
                panel.errorbar(means, range(len(rows)), xerr=spreads, fmt="o", markersize=4, label=column)
        panel.axvline(0, color="black", linewidth=1)
        # The first teacher is at the top.
        panel.set_yticks(range(len(rows)), [teacher for _, teacher in rows])
        panel.set(title=title_of(shared), xlabel="gain over the baseline, points", ylim=(len(rows) - 0.5, -0.5))
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)


def draw_gains_by_images(tables: Tables, path: str) -> None:
    """Draws lines of the gain over the baseline against the number of training images."""
    lines = {}  # These are lists of (training images, mean, standard deviation).
    for shared, rows in tables.items():
        for (_, teacher), row in rows.items():
            for column in set(row) - set(ACCURACIES):
                point = dict(shared)["train_images"], statistics.mean(row[column]), deviation(row[column])
                lines.setdefault(f"{teacher}, {column}", []).append(point)
    panels = {"gain over the baseline, points": dict(sorted(lines.items()))}
    draw_lines(panels, "training images", path, log=True)


def deviation(values: list) -> float:
    """Returns the standard deviation over seeds, which is 0 for a single seed."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def add_point(panels: dict, title: str, line: str, x: float, y: float) -> None:
    """Adds a point to a line in a panel for `draw_lines`."""
    panels.setdefault(title, {}).setdefault(line, []).append((x, y))


def draw_lines(panels: dict, x_label: str, path: str, log: bool = False) -> None:
    """Draws panels by title, at most three per row. A panel has lines by name, and a line is a list of points.

    A point is (x, y) or (x, y, standard deviation). With `log`, the x axis is logarithmic, and a line marks y = 0.
    """
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(path, 12, 1 + 3 * rows)
    for number, (title, lines) in enumerate(panels.items(), 1):
        panel = figure.add_subplot(rows, columns, number)
        for name, points in lines.items():
            panel.errorbar(*zip(*sorted(points), strict=True), fmt=".-", capsize=3, label=name)
        if log:
            panel.axhline(0, color="black", linewidth=1)
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter("{x:,.0f}")
            panel.legend(loc="upper left", bbox_to_anchor=(1, 1))
        else:
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.legend(fontsize="x-small")
        panel.set(title=title, xlabel=x_label)
        panel.grid(alpha=0.3)
    save(figure, path)


def draw_maps(image: Tensor, patch: tuple | None, sides: dict, path: str) -> None:
    """Draws an image, and where one of its patches, or the class token, looks in every block and head.

    The image is (3, S, S) with values from 0 to 1. `sides` holds maps (blocks, heads, rows, columns) by title. In each
    head, the maps of all sides are divided by their largest value, so that the sides can be compared.
    """
    from torchvision.utils import make_grid

    blocks, heads, grid, _ = next(iter(sides.values())).shape
    figure = new_figure(path, 16, 6)
    first, *panels = figure.subplots(1, 3)
    first.imshow(image.permute(1, 2, 0).numpy())
    first.set_axis_off()
    token = "the class token"
    if patch:
        row, column = patch
        token = f"patch {row},{column}"
        width = image.shape[-1] / grid  # in pixels
        first.plot((column + 0.5) * width, (row + 0.5) * width, "rs", fillstyle="none", markersize=330 / grid)
    first.set_title(f"where {token} looks")
    brightest = torch.maximum(*sides.values()).amax((-2, -1), keepdim=True)
    for panel, (title, maps) in zip(panels, sides.items(), strict=True):
        tiles = (maps / brightest).flatten(0, 1)[:, None]
        picture = make_grid(tiles, nrow=heads, padding=1, pad_value=math.nan)[0].numpy()
        panel.imshow(picture, cmap="magma", vmin=0, vmax=1, extent=(-0.5, heads - 0.5, blocks - 0.5, -0.5))
        panel.set(title=title, xlabel="head", ylabel="block", xticks=range(heads), yticks=range(blocks))
    save(figure, path)


def check_page_size(a_block: int, blocks: list) -> None:
    """Raises a `UserError` if maps of all `blocks`, with `a_block` bytes per block, are too large for a page."""
    fit = max(2, 24 * 2**20 // a_block)  # In base64, which turns 3 bytes into 4, this makes a page of 32 MiB.
    if len(blocks) > fit:
        some = ",".join(str(blocks[i * len(blocks) // fit]) for i in range(fit))
        raise UserError(f"a page of {len(blocks)} blocks would be too large to open; choose fewer: --blocks {some}")


def write_page(image: Tensor, sides: dict, prefix: list, blocks: list, numbers: dict, path: str) -> None:
    """Writes viewer.html with maps, and with an image (3, S, S) whose values are from 0 to 1.

    `sides` holds, by title, the maps (blocks, H + 1, N, N), whose last head is the mean, and the `numbers` of each row
    (..., count). The first number is the largest share that the row gives to one patch. The second is the largest share
    that one patch gives to its token. `prefix` names the tokens before the patches. Shares on them are stored exactly.
    """
    from torchvision.transforms.v2.functional import to_pil_image

    to_pil_image(image).save(file := io.BytesIO(), "png")
    source = f"data:image/png;base64,{in_base64(file.getvalue())}"
    content = {"image": source, "prefix": prefix, "blocks": blocks, "numbers": list(numbers.items()), "sides": []}
    for title, (maps, of_rows) in sides.items():
        on_prefix, on_patches = maps.tensor_split([len(prefix)], -1)
        content |= {"heads": maps.shape[1] - 1, "grid": math.isqrt(on_patches.shape[-1])}
        relative = (on_patches / of_rows[..., :1]).nan_to_num()  # A row that gives nothing to patches has 0 / 0.
        codes = (relative ** (1 / 8) * 255).round().byte()  # With the root, small shares have fine steps too.
        packed = [in_base64(values.numpy().tobytes()) for values in (codes, torch.cat((of_rows, on_prefix), -1))]
        content["sides"].append({"title": title, "codes": packed[0], "numbers": packed[1]})
    page = Path(__file__).with_name("viewer.html").read_text("utf-8")
    with replacing(Path(path)) as temporary:
        temporary.write_text(page.replace("@DATA@", json.dumps(content).replace("<", "\\u003c")), "utf-8")
    print(f"written: {path}; open it in a browser")


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
