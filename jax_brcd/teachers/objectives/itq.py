"""ITQ, iterative quantisation (Gong and Lazebnik, CVPR 2011; Gong et al., TPAMI 2013): principal components, rotated to their
signs."""

import dataclasses

import numpy as np
from jaxtyping import Float

from jax_brcd.runtime import interruption
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.options import option
from jax_brcd.teachers.objectives.base import Sees


def iterative_quantisation(
    projected: Float[np.ndarray, "images bits"], rotation: Float[np.ndarray, "bits bits"], iterations: int
) -> tuple[Float[np.ndarray, "bits bits"], list[float]]:
    """The rotation R that brings the points V near to their signs, by turns B = sign(V R) and R = argmin |B - V R| (section
    3.2).

    Returns:
        The rotation, and the quantisation error |sign(V R) - V R|^2 / images before the first iteration and after each.
    """
    from scipy.linalg import orthogonal_procrustes  # here, because scipy and scikit-learn are slow to import and ITQ is rare

    errors = []
    for _ in range(iterations):
        interruption.check()
        codes = np.where(projected @ rotation >= 0, 1.0, -1.0)
        errors.append(quantisation_error(projected @ rotation))
        rotation, _ = orthogonal_procrustes(projected, codes)
    return rotation, [*errors, quantisation_error(projected @ rotation)]


def quantisation_error(logits: Float[np.ndarray, "images bits"]) -> float:
    """Mean squared distance of an image's logits to their signs."""
    return float(np.mean(np.sum((np.abs(logits) - 1.0) ** 2, axis=1)))


def random_rotation(bits: int, seed: int) -> Float[np.ndarray, "bits bits"]:
    """The orthogonal factor of a Gaussian matrix, from which ITQ starts."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(bits, bits)))[0]


@dataclasses.dataclass(frozen=True)
class ITQ:
    """The classical yardstick: nothing is learnt by gradient and no view is seen, the head is solved from frozen features."""

    sees = Sees.ONE_ROW

    itq_iterations: int = option(50, "iterations of ITQ's rotation", low=0)

    def check(self, *, images: int, features: int, bits: int) -> None:
        """See ClosedFormObjective: there are as many principal components as images and features allow."""
        if bits > min(images, features):
            raise InputError("`teacher_objective` itq has one principal component a bit, at most as many as "
                             f"features ({features}) and training images ({images}); give {min(images, features)} or less",
                             field="bits", value=bits)

    def solve(
        self, features: Float[np.ndarray, "images features"], bits: int, *, seed: int
    ) -> tuple[Float[np.ndarray, "features bits"], Float[np.ndarray, "bits"], list[dict[str, float]]]:
        """See ClosedFormObjective. Everything is float64 on the host: a head is solved in moments."""
        from sklearn.decomposition import PCA

        features = np.asarray(features, np.float64)
        self.check(images=len(features), features=features.shape[1], bits=bits)
        # Of many images the covariances are all that is held beside the features, where a factorization holds them twice more
        solver = "covariance_eigh" if len(features) >= features.shape[1] else "full"
        components = PCA(bits, svd_solver=solver).fit(features)
        rotation, errors = iterative_quantisation(
            components.transform(features), random_rotation(bits, seed), self.itq_iterations)
        kernel = components.components_.T @ rotation
        return kernel, -components.mean_ @ kernel, [{"quantisation_error": error} for error in errors]
