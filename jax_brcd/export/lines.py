"""What an export found, in words."""

from collections.abc import Mapping
from typing import Any


def lines_of(facts: Mapping[str, Any]) -> list[str]:
    """A line for each file that was tried, and what int8 costs."""
    lines = [_tried(file, found) for file, found in facts["verified"].items()]
    return lines + _costs(facts["quantized"]) if "quantized" in facts else lines


def _tried(file: str, found: Mapping[str, Any]) -> str:
    different = found["different_bits"]
    differ = f"{different:,} differ, all of logits near zero" if different else "none differs"
    return (f"{file}: {found['bits']:,} bits of {found['images']:,} inputs, {differ} ({found['bits_near_zero']:,} within "
            f"{found['near_zero']:.1e} of zero; logits differ by {found['largest_difference']:.1e} at most)")


def _costs(small: Mapping[str, Any]) -> list[str]:
    seconds, sizes = small["seconds_an_image"], small["bytes"]
    lines = [f"int8: {small['changed_share']:.2%} of the bits of {small['compared_images']:,} images changed; "
             f"{1e3 * seconds['int8']:.2f} ms an image instead of {1e3 * seconds['float32']:.2f} "
             f"({seconds['float32'] / seconds['int8']:.2f}x); {sizes['int8'] / 2**20:.1f} MiB instead of "
             f"{sizes['float32'] / 2**20:.1f}; calibrated by {small['calibration_images']:,} images"]
    if "map" in small:
        maps, told = small["map"], small["protocol"]
        lines.append(f"mAP@{told['k']}: {maps['int8']:.4f} instead of {maps['float32']:.4f} ({told['dataset']}, split "
                     f"{told['split']}; {told['queries']:,} queries in {told['database']:,} codes of the same encoder; ties "
                     f"{told['ties']})")
    return lines
