"""What a stage trains on: views of images, how many there are of either, and whether pixels travel with a step."""

import dataclasses

from jax_brcd.views.sources import ViewSource
from jax_brcd.views.streaming import Stream


@dataclasses.dataclass(frozen=True)
class Source:
    """The views of a stage.

    Attributes:
        views: a pytree that answers for each step, on the device: pixels, or what was kept of them.
        n_images: how many images there are. kept_views: how many views of each, to draw from; None for new ones each epoch.
        stream: images that travel with each step, which then is a program of its own; None where `views` holds all.
    """

    views: ViewSource
    n_images: int
    kept_views: int | None = None
    stream: Stream | None = None
