"""`report.html`: one file that shows what is in the shards, what was left out, and what to look at before training.

It holds pictures of patients: it stays where the shards are, and does not go to MLflow. Self-contained and the same bytes for
the same shards: no scripts, no network, no times, no raw paths or ids. Of quarantined files it has counts only.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from components.common.dicom.refusal import Reason
from components.common.dicom.render import resize
from components.common.formats.shards import SPLITS, Pixels
from components.common.html import page
from components.common.html.charts import UNIT, Axis, Line, chart, nice_axis
from components.preprocess.report_statistics import EXTREMES, KINDS, TEXT_SUSPECTED, UNKNOWN, ExtremeImage, ReportStatistics, load_pixels
from components.preprocess.rows import BINS

REPORT = "report.html"
MIN_POSITIVES = 5
"""Of a finding in a split, below which the report warns: what is measured on fewer says little."""
THUMBNAIL = 240
"""Longer side of a picture, in pixels."""
JPEG_QUALITY = 82
STYLES = {"train": "first", "val": "second", "test": "third"}
SPLIT_NAMES = {"train": "Training", "val": "Validation", "test": "Test"}
TITLES = {"view": "View", "sex": "Sex", "age_band": "Age in years", "manufacturer": "Manufacturer"}
SEXES = {"F": "female", "M": "male", "O": "other"}
MEANINGS = {
    Reason.NOT_DICOM: "neither DICOM nor a picture",
    Reason.NO_PIXELS: "no image in it",
    Reason.WRONG_MODALITY: "neither CR nor DX",
    Reason.WRONG_BODY_PART: "not of the chest",
    Reason.WRONG_VIEW: "a view that is not among preprocess.views",
    Reason.UNSUPPORTED_PHOTOMETRIC: "colour, or another encoding of gray than MONOCHROME1 and 2",
    Reason.BURNED_IN_TEXT: "tagged as having text in the pixels, or refused by preprocess.text_check",
    Reason.UNREADABLE: "truncated, undecodable, or pixels that do not fit the header",
    Reason.IMPLAUSIBLE_SIZE: "too small, too large or too narrow for a chest",
    Reason.BLANK_IMAGE: "one value everywhere, or nothing but padding",
}

Manifest = Mapping[str, Any]


def write(folder: Path, manifest: Manifest, survey: ReportStatistics) -> None:
    """Writes the report, and the list of images with what looks like text.

    Args:
        folder: of the finished parts.
        manifest: of the same shards.
        survey: of the same rows.
    """
    survey.write_text_suspected(folder / TEXT_SUSPECTED)
    pictures = {extreme.name: [(kept, load_pixels(folder, kept)) for kept in survey.extremes[extreme.name]] for extreme in EXTREMES}
    (folder / REPORT).write_text(render(manifest, survey, pictures), encoding="utf-8")


def render(manifest: Manifest, survey: ReportStatistics, pictures: Mapping[str, Sequence[tuple[ExtremeImage, Pixels]]]) -> str:
    """The report as HTML.

    Args:
        manifest: of the shards.
        survey: of their rows.
        pictures: the images that stand out, by kind of extreme.
    """
    lead = "What is in these shards, what was left out of them, and what to look at before training."
    header = f'<header><h1>Chest radiographs, as preprocessed</h1><p class="lead">{lead}</p></header>'
    sections = [_hero(manifest), _warnings(manifest), _findings(manifest), _boxes(manifest), _people(manifest), _intensities(survey)]
    sections += [_contact_sheet(pictures), _text(manifest), _left_out(manifest), _provenance(manifest)]
    return page.document("Data report: chest radiographs", [header, *sections])


def warnings(manifest: Manifest) -> list[str]:
    """What may spoil a training or its evaluation, in sentences of HTML."""
    counts = manifest["counts"]
    empty = [split for split in SPLITS if not counts["images"][split]]
    found = [f"The {_name(split)} split has no images." for split in empty]
    present = [split for split in SPLITS if split not in empty]
    for finding in manifest["findings"]:
        short = [_shortage(split, counts["labels"][split][finding]) for split in present]
        if any(short):
            found.append(f"<b>{escape(finding)}</b> has {page.listing(filter(None, short))}.")
    total = sum(counts["images"].values())
    for kind in KINDS:
        unknown = sum(counts[kind][split].get(UNKNOWN, 0) for split in SPLITS)
        if 2 * unknown > total:
            found.append(f"{_share(unknown, total)} of the images have an unknown {page.words(kind).lower()}.")
    if not manifest["findings"]:
        found.append("There are no labels: the shards serve pretraining only.")
    return found


def _shortage(split: str, labels: Mapping[str, int]) -> str:
    """What a split lacks of a finding; empty if nothing."""
    for kind in ("positive", "negative"):
        if not labels[kind]:
            return f"no {kind}s in {_name(split)}"
    few = labels["positive"] < MIN_POSITIVES
    return f"only {page.plural(labels['positive'], 'positive')} in {_name(split)}" if few else ""


def _hero(manifest: Manifest) -> str:
    counts = manifest["counts"]
    rows, files = counts["rows"], counts["files"]
    patients = sum(counts["patients"].values())
    parts = [(split, counts["images"][split]) for split in SPLITS]
    legend = "<br>".join(_split_line(manifest, split) for split in SPLITS)
    main = (
        f'<div class="card main"><div class="label">Images</div><div class="number">{rows:,}</div>'
        f'<div class="interval">of {page.plural(patients, "patient")}, none of whom is in two splits</div>'
        f'{_stack([(STYLES[split], count) for split, count in parts], rows)}<p class="legend">{legend}</p></div>'
    )
    suspected = sum(counts["text_suspected"].values())
    off = manifest["params"]["text_check"] == "off"
    cards = [
        page.card("Files seen", f"{files:,}", "each is a row, quarantined or a duplicate"),
        page.card("Quarantined", f"{counts['quarantined']:,}", f"{_share(counts['quarantined'], files)} of the files"),
        page.card("Duplicates", f"{counts['duplicates']:,}", "of an image that is there already"),
        page.card("Text suspected", "–" if off else f"{suspected:,}", "not looked for" if off else "images to check for names, see below"),
    ]
    return f'<section class="hero" aria-label="Headline">{main}{"".join(cards)}</section>'


def _split_line(manifest: Manifest, split: str) -> str:
    images, patients = (manifest["counts"][kind][split] for kind in ("images", "patients"))
    key = f'<span class="key {STYLES[split]}"></span>'
    return f"{key}{SPLIT_NAMES[split]}: {page.plural(images, 'image')} of {page.plural(patients, 'patient')}"


def _warnings(manifest: Manifest) -> str:
    found = warnings(manifest)
    if not found:
        return '<section class="note good"><p>Every finding has positives and negatives enough in every split.</p></section>'
    items = "".join(f"<li>{text}</li>" for text in found)
    return f'<section class="note"><h2>To look at</h2><ul>{items}</ul></section>'


def _findings(manifest: Manifest) -> str:
    """Labels by finding and split, and how common each finding is."""
    labels = manifest["counts"]["labels"]
    if not manifest["findings"]:
        return ""
    shares = [_prevalence(labels[split][finding]) for split in SPLITS for finding in manifest["findings"]]
    top = max([share for share in shares if share is not None], default=0.0) or 1.0
    rows = []
    for finding in manifest["findings"]:
        each = [labels[split][finding] for split in SPLITS]
        rows.append(page.row(finding, [*map(_label_cell, each), _prevalence_bars(finding, each, top)]))
    heads = ["Finding", *SPLIT_NAMES.values(), "Positive, of those known"]
    caption = f"Positive / negative images, and those with an unknown label. Fewer than {MIN_POSITIVES} positives are marked."
    return f'<section><h2>Findings</h2>{_legend()}<div class="card scroll">{page.table(caption, heads, rows)}</div></section>'


def _label_cell(labels: Mapping[str, int]) -> str:
    few = ' class="few"' if labels["positive"] < MIN_POSITIVES else ""
    unknown = f'<span class="range below">{labels[UNKNOWN]:,} unknown</span>' if labels[UNKNOWN] else ""
    return f"<span{few}>{labels['positive']:,}</span> / {labels['negative']:,}{unknown}"


def _prevalence(labels: Mapping[str, int]) -> float | None:
    known = labels["positive"] + labels["negative"]
    return labels["positive"] / known if known else None


def _prevalence_bars(finding: str, labels: Sequence[Mapping[str, int]], top: float) -> str:
    bars = []
    for split, each in zip(SPLITS, labels, strict=True):
        share = _prevalence(each)
        text = f"{SPLIT_NAMES[split]}: {'unknown' if share is None else f'{share:.1%}'} of the known labels of {finding} are positive"
        bars.append(_bar(STYLES[split], (share or 0.0) / top, text, "–" if share is None else f"{100 * share:.1f} %"))
    return "".join(bars)


def _boxes(manifest: Manifest) -> str:
    boxes = manifest["counts"]["boxes"]
    names = sorted({name for split in SPLITS for name in boxes[split]})
    if not names:
        return ""
    rows = [page.row(name, [f"{boxes[split].get(name, 0):,}" for split in SPLITS]) for name in names]
    table = page.table("Boxes by label.", ["Box", *SPLIT_NAMES.values()], rows)
    return f'<section><h2>Boxes</h2><div class="card scroll">{table}</div></section>'


def _people(manifest: Manifest) -> str:
    text = "As shares of each split: bars of one row that differ mean that a split is not like the others."
    cards = "".join(_people_card(kind, manifest["counts"][kind], manifest["counts"]["images"]) for kind in KINDS)
    return f'<section><h2>Patients and devices</h2><p>{text}</p>{_legend()}<div class="columns">{cards}</div></section>'


def _people_card(kind: str, counts: Mapping[str, Mapping[str, int]], images: Mapping[str, int]) -> str:
    """A row a value: bars of the share in each split, and the number of images."""
    totals = {value: sum(counts[split].get(value, 0) for split in SPLITS) for split in SPLITS for value in counts[split]}
    by_size = sorted(totals, key=lambda value: (value == UNKNOWN, 0 if kind == "age_band" else -totals[value], value))
    shares = [counts[split].get(value, 0) / images[split] for value in totals for split in SPLITS if images[split]]
    top = max(shares, default=1.0)
    rows = []
    for value in by_size:
        name = SEXES.get(value, value) if kind == "sex" else value
        bars = "".join(_share_bar(split, counts[split].get(value, 0), images[split], top, name) for split in SPLITS)
        rows.append(page.row(name, [bars, f"{totals[value]:,}"], "out" if value == UNKNOWN else ""))
    table = page.table("", [TITLES[kind], "Share of the split", "Images"], rows)
    return f'<div class="card">{table}</div>'


def _share_bar(split: str, count: int, images: int, top: float, name: str) -> str:
    share = count / images if images else 0.0
    label = f"{name}: {page.plural(count, 'image')} of the {_name(split)} split"
    return _bar(STYLES[split], share / top, label, f"{100 * share:.1f} %" if images else "–")


def _bar(style: str, share: float, label: str, text: str) -> str:
    bar = f'<span class="fill {style}" style="width:{100 * share:.1f}%"></span>' if share else ""
    return f'<span class="bar" role="img" aria-label="{escape(label, quote=True)}"><span class="track">{bar}</span><i>{text}</i></span>'


def _stack(parts: Sequence[tuple[str, int]], total: int) -> str:
    """One bar of several parts."""
    fills = "".join(f'<span class="fill {style}" style="width:{100 * count / (total or 1):.2f}%"></span>' for style, count in parts)
    return f'<span class="stack" aria-hidden="true">{fills}</span>'


def _legend() -> str:
    keys = " &nbsp; ".join(f'<span class="key {STYLES[split]}"></span>{SPLIT_NAMES[split]}' for split in SPLITS)
    return f'<p class="legend">{keys}</p>'


def _intensities(survey: ReportStatistics) -> str:
    """Share of the pixels by brightness, a line a split."""
    lines, tops = [], [0.0]
    for split in reversed(SPLITS):  # training on top
        counts = survey.histograms[split]
        if not counts.any():
            continue
        shares = 100 * counts / counts.sum()
        tops.append(float(shares.max()))
        lines.append(Line(list(_steps(shares)), STYLES[split]))
    y = nice_axis([0.0, max(tops)], "% of the pixels")
    picture = chart(
        "Histogram of brightness, a line a split", lines, Axis(0, 1, UNIT, "Brightness, from black to white"), y, size=(980, 260)
    )
    text = (
        "Of the stored pixels, after the window and the clip. The darkest step holds collimation and the air around the patient, the "
        "brightest what the clip cut off. Splits whose lines differ come from different devices or settings."
    )
    return f'<section><h2>Brightness</h2><p>{text}</p><figure class="card">{picture}{_legend()}</figure></section>'


def _steps(shares: Any) -> Iterator[tuple[float, float]]:
    for index, share in enumerate(shares):
        yield index / BINS, float(share)
        yield (index + 1) / BINS, float(share)


def _contact_sheet(pictures: Mapping[str, Sequence[tuple[ExtremeImage, Pixels]]]) -> str:
    groups = "".join(_group(name, images) for name, images in pictures.items() if images)
    text = (
        "The images that stand out most, out of all splits: faults of exposure, wrong windows, inverted or cropped pictures and views "
        "that are none show here first. Look one up by its <code>image_id</code>. Mean and standard deviation (SD) are of its "
        "brightness from 0 to 1. Images with suspected text are not shown."
    )
    return f"<section><h2>Extremes</h2><p>{text}</p>{groups}</section>" if groups else ""


def _group(name: str, images: Sequence[tuple[ExtremeImage, Pixels]]) -> str:
    figures = "".join(_figure(name, rank, kept, pixels) for rank, (kept, pixels) in enumerate(images, start=1))
    return f'<h3 class="group">{page.words(name)}</h3><div class="sheet">{figures}</div>'


def _figure(name: str, rank: int, kept: ExtremeImage, pixels: Pixels) -> str:
    height, width, content = thumbnail(pixels)
    source = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
    alt = escape(f"Chest radiograph, {name}, number {rank}: {kept.note}", quote=True)
    image = f'<span class="frame"><img src="{source}" alt="{alt}" width="{width}" height="{height}" loading="lazy"></span>'
    return f'<figure class="tile">{image}<figcaption>{escape(kept.note)}<code>{escape(kept.image_id)}</code></figcaption></figure>'


def thumbnail(pixels: Pixels) -> tuple[int, int, bytes]:
    """A picture no larger than THUMBNAIL as JPEG, without metadata: height, width and content.

    Args:
        pixels: (H, W), uint8 or uint16.
    """
    image = np.asarray(pixels, np.float32) * (255 / np.iinfo(pixels.dtype).max)
    if max(image.shape) > THUMBNAIL:
        image = resize(image, THUMBNAIL)
    done, content = cv2.imencode(".jpg", np.rint(image).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    return image.shape[0], image.shape[1], content.tobytes()


def _text(manifest: Manifest) -> str:
    """What was found, and what that is worth."""
    counts, mode = manifest["counts"]["text_suspected"], manifest["params"]["text_check"]
    total, rows = sum(counts.values()), manifest["counts"]["rows"]
    if mode == "off":
        return "<section><h2>Suspected text</h2><p>Text was not looked for: <code>preprocess.text_check</code> is off.</p></section>"
    if mode == "quarantine":
        found = "Images with what looks like text near an edge were quarantined as <code>burned_in_text</code>."
    elif total:
        splits = page.listing(f"{counts[split]:,} of {_name(split)}" for split in SPLITS if counts[split])
        found = (
            f"What may be text is in {page.plural(total, 'image')} ({_share(total, rows)}: {splits}), near an edge. "
            f"<code>{TEXT_SUSPECTED}</code> lists them. Look at them before the shards leave: side markers and words such as PORTABLE "
            "are harmless, names and dates are not. To refuse such images, set "
            "<code>preprocess.text_check</code> to <code>quarantine</code>."
        )
    else:
        found = "No image seems to have text near an edge."
    limits = "The search is a best effort: it looks for rows of characters near the edges, and can miss faint, slanted or handwritten ones."
    return f"<section><h2>Suspected text</h2><p>{found} {limits}</p></section>"


def _left_out(manifest: Manifest) -> str:
    counts = manifest["counts"]
    if not counts["quarantined"]:
        return "<section><h2>Quarantine</h2><p>No file was quarantined.</p></section>"
    reasons = {reason.value: (MEANINGS[reason], counts["reasons"][reason.value]) for reason in Reason if reason.value in counts["reasons"]}
    rows = [
        page.row(name, [f'<span class="plain">{meaning}</span>', f"{count:,}", _share(count, counts["files"])])
        for name, (meaning, count) in reasons.items()
    ]
    table = page.table("In the order in which the tests are made.", ["Reason", "Meaning", "Files", "Share"], rows)
    text = "<code>quarantine.parquet</code> names the files. It holds raw paths, and so it stays inside; their pictures are nowhere."
    return f'<section><h2>Quarantine</h2><p>{text}</p><div class="card scroll left2">{table}</div></section>'


def _provenance(manifest: Manifest) -> str:
    pixels = manifest["train_pixels"]
    rows = [
        page.entry("Images", f"longer side {manifest['size']} pixels, {manifest['bits']} bits"),
        page.entry("Training pixels", f"mean {pixels['mean']:.4f}, standard deviation {pixels['std']:.4f} of the full range"),
        page.entry("Patients known by", _listed(manifest["patient_id_from"])),
        page.entry("Pseudonym key", f"<code>{escape(manifest['pseudonym_key_id'])}</code>"),
        page.entry("Input", page.digest(manifest["input"])),
        *(page.entry(escape(name), page.digest(value)) for name, value in sorted(manifest["labels"].items())),
        page.entry("Parameters", page.pairs(manifest["params"])),
        page.entry("Parquet files", f"{len(manifest['parts']):,}"),
    ]
    table = f"<table><caption>Digests are SHA-256, their first {page.SHOWN_DIGITS} digits.</caption><tbody>{''.join(rows)}</tbody></table>"
    return f'<section><h2>Where the shards come from</h2><div class="card scroll">{table}</div></section>'


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{escape(name)} ({page.plural(count, 'image')})" for name, count in counts.items())


def _name(split: str) -> str:
    return SPLIT_NAMES[split].lower()


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "–"
