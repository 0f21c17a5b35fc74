"""The Hugging Face hub: repositories fetched into its own cache, and encoders published with a model card.

`huggingface_hub` (the extra `hub`) is imported where it is used.
"""

from jax_brcd.hub.card import model_card
from jax_brcd.hub.fetching import Fetched, fetch
from jax_brcd.hub.names import HubName, is_hub_name
from jax_brcd.hub.publishing import publish, without_places

__all__ = ["Fetched", "HubName", "fetch", "is_hub_name", "model_card", "publish", "without_places"]
