"""Clusters of the teacher's codes: k-means, how many clusters, bit masks."""
