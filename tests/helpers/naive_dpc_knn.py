"""
Density peaks clustering as described in section 3.1 of the paper, token by token in plain Python: slow, obvious, and
independent of the package's code. Squared distances are exact fractions, so that ties are exact; ties go to the lower
index.
"""

import math
from fractions import Fraction


def squared_distances(tokens):
    """d(x_i, x_j)^2 for all pairs: squared Euclidean distance divided by the number of channels."""
    exact = [[Fraction(value) for value in token] for token in tokens]
    return [[sum((x - y) ** 2 for x, y in zip(a, b)) / len(a) for b in exact] for a in exact]


def mean_to_neighbors(squared, k):
    """The exponent of Eq. 1 without its sign; small for tokens of high density."""
    return [sum(sorted(row)[:k]) / min(k, len(row)) for row in squared]


def separation(squared, sparseness):
    """delta_i of Eq. 2 and the nearest denser token (None for the densest) for every token."""
    deltas, parents = [], []
    for i, row in enumerate(squared):
        denser = [j for j in range(len(row)) if (sparseness[j], j) < (sparseness[i], i)]
        parent = min(denser, key=lambda j: (row[j], j)) if denser else None
        deltas.append(math.sqrt(row[parent] if denser else max(row)))
        parents.append(parent)
    return deltas, parents


def cluster(tokens, num_clusters, k=5, assignment="density_parent"):
    """Cluster of every token of one image (a list of lists of floats), for each number in `num_clusters`."""
    squared = squared_distances(tokens)
    sparseness = mean_to_neighbors(squared, k)
    delta, parent = separation(squared, sparseness)
    # log(rho delta), since rho itself would underflow for tokens that are far apart
    decision_value = [
        -exponent + (math.log(distance) if distance > 0 else -math.inf) for exponent, distance in zip(sparseness, delta)
    ]
    by_decision = sorted(range(len(tokens)), key=lambda i: (parent[i] is not None, -decision_value[i], i))
    scales = []
    for number in num_clusters:
        centers = by_decision[:number]
        labels = []
        for i, row in enumerate(squared):
            if assignment == "density_parent":
                root = i
                while root not in centers:
                    root = parent[root]
                labels.append(centers.index(root))
            elif i in centers:
                labels.append(centers.index(i))
            else:
                labels.append(min(range(len(centers)), key=lambda m: (row[centers[m]], m)))
        scales.append(labels)
    return scales
