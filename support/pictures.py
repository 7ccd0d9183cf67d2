"""Pictures, drawn with matplotlib: gains, curves of training, maps, and how well they agree; and a page of maps."""

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
    """An empty matplotlib figure of that size in inches, without a window, for `save`."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("pictures need matplotlib; install it with: pip install matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    if Path(path).suffix[1:].lower() not in FigureCanvasAgg(figure).get_supported_filetypes():
        raise UserError(f"cannot tell what kind of picture {path} is to be; let its name end in .png, .svg or .pdf")
    return figure


def save(figure: Any, path: str) -> None:
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:].lower(), dpi=150)
    print(f"drawn: {path}")


def draw_gains(tables: Tables, path: str) -> None:
    """The gain over the baseline, with its deviation over seeds: a panel a table, a line a teacher, a dot a column.

    Where the tables are of different numbers of training images, the gain against that number.
    """
    numbers = {dict(shared).get("train_images") for shared in tables}
    if len(tables) > 1 and len(numbers) == len(tables) and None not in numbers:
        return draw_gains_by_images(tables, path)
    heights = [1.2 + 0.25 * len(rows) for rows in tables.values()]
    figure = new_figure(path, 9, sum(heights))
    panels = figure.subplots(len(tables), squeeze=False, height_ratios=heights)[:, 0]
    for panel, (shared, rows) in zip(panels, tables.items(), strict=True):
        for column in columns_of(rows):
            if column not in ACCURACIES:
                gains = [row.get(column, [math.nan]) for row in rows.values()]  # no dot where there are none
                means, spreads = list(map(statistics.mean, gains)), list(map(deviation, gains))
                panel.errorbar(means, range(len(rows)), xerr=spreads, fmt="o", markersize=4, label=column)
        panel.axvline(0, color="black", linewidth=1)
        panel.set_yticks(range(len(rows)), [teacher for _, teacher in rows])
        panel.set_ylim(len(rows) - 0.5, -0.5)  # the first teacher on top
        panel.set(title=title_of(shared), xlabel="gain over the baseline, points")
        add_legend(panel)
    save(figure, path)


def draw_gains_by_images(tables: Tables, path: str) -> None:
    """Lines of the gain over the baseline against the number of training images, with its deviation over seeds."""
    lines = {}  # by teacher and column: of each table, (images, mean, deviation)
    for shared, rows in tables.items():
        for (_, teacher), row in rows.items():
            for column in set(row) - set(ACCURACIES):
                point = dict(shared)["train_images"], statistics.mean(row[column]), deviation(row[column])
                lines.setdefault(f"{teacher}, {column}", []).append(point)
    figure = new_figure(path, 8, 4.5)
    panel = figure.subplots()
    for name, points in sorted(lines.items()):
        counts, means, deviations = zip(*sorted(points), strict=True)
        panel.errorbar(counts, means, deviations, fmt=".-", capsize=3, label=name)
    panel.axhline(0, color="black", linewidth=1)
    panel.set(xscale="log", xlabel="training images", ylabel="gain over the baseline, points")
    panel.xaxis.set_major_formatter("{x:,.0f}")
    add_legend(panel)
    save(figure, path)


def add_legend(panel: Any) -> None:
    """A grid, and beside the panel the names of what it shows, if there is anything."""
    panel.grid(alpha=0.3)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(loc="upper left", bbox_to_anchor=(1, 1))


def deviation(values: list[float]) -> float:
    """The standard deviation over seeds; 0 of a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def add_point(panels: dict[str, dict], title: str, line: str, x: float, y: float) -> None:
    """Adds a point to a line of a panel of `draw_lines`."""
    xs, ys = panels.setdefault(title, {}).setdefault(line, ([], []))
    xs.append(x)
    ys.append(y)


def draw_lines(panels: dict[str, dict[str, tuple]], x_label: str, path: str) -> None:
    """Panels by title, three a row; each has lines by name: (x, y)."""
    rows = -(-len(panels) // 3)  # rounded up
    figure = new_figure(path, 12, 1 + 3 * rows)
    for panel, (title, lines) in zip(figure.subplots(rows, 3).flat, panels.items(), strict=False):
        for name, (x, y) in lines.items():
            panel.plot(x, y, ".-", label=name)
        panel.set(title=title, xlabel=x_label)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="x-small")
    save(figure, path)


def draw_maps(image: Tensor, patch: tuple[int, int] | None, sides: dict[str, Tensor], path: str) -> None:
    """An image (3, S, S) from 0 to 1, and where a patch of it, or the class token, looks in every block and head.

    `sides` holds maps (blocks, heads, rows, columns) by title. The maps of a head are scaled by the brightest patch of
    all sides, so that these can be compared.
    """
    from torchvision.utils import make_grid

    blocks, heads, grid, _ = next(iter(sides.values())).shape
    figure = new_figure(path, 16, 6)
    first, *panels = figure.subplots(1, 3)
    first.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy())
    first.set_axis_off()
    first.set_title("where the class token looks" if patch is None else f"where patch {patch[0]},{patch[1]} looks")
    if patch is not None:
        width = image.shape[-1] / grid  # of a patch, in pixels
        first.plot((patch[1] + 0.5) * width, (patch[0] + 0.5) * width, "rs", fillstyle="none", markersize=330 / grid)
    brightest = torch.maximum(*sides.values()).amax((-2, -1), keepdim=True)
    for panel, (name, maps) in zip(panels, sides.items(), strict=True):
        tiles = (maps / brightest).flatten(0, 1)[:, None]
        picture = make_grid(tiles, nrow=heads, padding=1, pad_value=math.nan)[0].numpy()
        panel.imshow(picture, cmap="magma", vmin=0, vmax=1, extent=(-0.5, heads - 0.5, blocks - 0.5, -0.5))
        panel.set(title=name, xlabel="head", ylabel="block", xticks=range(heads), yticks=range(blocks))
    save(figure, path)


def check_page_size(a_block: int, blocks: list[int]) -> None:
    """Raises a `UserError` if maps of so many numbers a block, in all of `blocks`, are too much for a page."""
    fit = max(2, 24_000_000 // a_block)  # in base64, which makes 4 bytes of 3, a page of 32 MB
    if len(blocks) > fit:
        some = ",".join(str(blocks[i * len(blocks) // fit]) for i in range(fit))
        raise UserError(f"a page of {len(blocks)} blocks would be too large to open; choose some: --blocks {some}")


def write_page(
    image: Tensor, sides: dict[str, tuple], prefix: list[str], blocks: list[int], numbers: dict, path: str
) -> None:
    """Writes viewer.html with maps in it: an image (3, S, S) from 0 to 1, and `sides` by title.

    A side is maps (blocks, H + 1, N, N) of which the last head is the mean, and of each row the `numbers` (...,
    count), of which the first is its largest share. `prefix` names the tokens before the patches.
    """
    from torchvision.transforms.v2.functional import to_pil_image

    def packed(tensor: Tensor) -> str:
        return base64.b64encode(tensor.cpu().contiguous().numpy().tobytes()).decode()

    to_pil_image(image.clamp(0, 1)).save(file := io.BytesIO(), "png")
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = {"image": source, "prefix": prefix, "blocks": blocks, "numbers": list(numbers.items()), "sides": []}
    for title, (maps, of_rows) in sides.items():
        content |= {"heads": maps.shape[1] - 1, "grid": math.isqrt(maps.shape[-1] - len(prefix))}
        shares = (maps / of_rows[..., :1] * 255).round().byte()  # of the row's largest
        content["sides"].append({"title": title, "maps": packed(shares), "numbers": packed(of_rows.float())})
    template = Path(__file__).with_name("viewer.html").read_text()
    with replacing(Path(path)) as temporary:
        temporary.write_text(template.replace("@DATA@", json.dumps(content).replace("<", "\\u003c")))
    print(f"written: {path}; open it in a browser")
