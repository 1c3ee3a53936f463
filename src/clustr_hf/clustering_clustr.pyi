# For type checkers: at run time `clustr_hf.clustering_clustr` is `clustr_hf.remote_code.clustering_clustr`.
from .remote_code.clustering_clustr import *  # noqa: F403
