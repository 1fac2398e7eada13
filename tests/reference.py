"""A slow twin of the C++ core, straight from the definitions: the oracle of the other tests."""

import mpmath
import numpy as np
import scipy.ndimage
import scipy.special
import scipy.stats


def neighbours(connectivity):
    four = [(-1, 0), (0, -1), (0, 1), (1, 0)]
    return four if connectivity == 4 else [*four, (-1, -1), (-1, 1), (1, -1), (1, 1)]


def components(mask, connectivity=4):
    """Connected components of a mask by flooding, as frozensets of (row, col), in raster order."""
    left = {tuple(p) for p in np.argwhere(mask).tolist()}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        left.remove(start)
        component, todo = [start], [start]
        while todo:
            row, col = todo.pop()
            for dr, dc in neighbours(connectivity):
                pixel = (row + dr, col + dc)
                if pixel in left:
                    left.remove(pixel)
                    component.append(pixel)
                    todo.append(pixel)
        found.append(frozenset(component))
    return found


def max_tree(image, connectivity=4):
    """Nodes {component: level} of the max-tree: all components of all upper level sets."""
    nodes = {}
    for level in np.unique(image):
        for component in components(image >= level, connectivity):
            nodes[component] = level.item()  # a component that survives to a higher level keeps the higher
    return nodes


def children_of(nodes):
    """{component: components just above it}."""
    children = {node: [] for node in nodes}
    for node in nodes:
        above = [other for other in nodes if other > node]
        if above:
            children[min(above, key=len)].append(node)
    return children


def prune_and_merge(children, value):  # noqa: C901 (method.md's words, one by one)
    """Final regions by method.md's words: prune, merge, repeat until nothing changes, take the leaves."""
    children = {node: list(kids) for node, kids in children.items()}

    def parents():
        return {kid: node for node, kids in children.items() for kid in kids}

    changed = True
    while changed:
        changed = False
        for leaf in [node for node, kids in children.items() if not kids]:
            parent = parents()
            branch = [leaf]
            while branch[-1] in parent and len(children[parent[branch[-1]]]) == 1:
                branch.append(parent[branch[-1]])
            if len(branch) == 1:
                continue
            best = min(branch, key=lambda node: value[node])  # the first, nearest the leaf, when equal
            if branch[-1] in parent:
                siblings = children[parent[branch[-1]]]
                siblings[siblings.index(branch[-1])] = best
            for node in branch:
                del children[node]
            children[best] = []
            changed = True
        for node, kids in list(children.items()):
            if len(kids) > 1 and not any(children[kid] for kid in kids) and value[node] <= min(value[k] for k in kids):
                for kid in kids:
                    del children[kid]
                children[node] = []
                changed = True
    return [node for node, kids in children.items() if not kids]


def log10_chi2_sf(x, dof):
    with mpmath.workdps(40):
        return float(
            mpmath.log10(mpmath.gammainc(mpmath.mpf(dof) / 2, mpmath.mpf(x) / 2, mpmath.inf, regularized=True))
        )


def log10_chernoff(t, dof, guarded):
    if guarded and t <= 1:
        return 0.0
    return -dof / 2 * (t - 1 - np.log(t)) / np.log(10)


def log10_binomial_sf(k, n, p):
    with mpmath.workdps(40):
        p = mpmath.mpf(p)
        terms = (mpmath.binomial(n, i) * p**i * (1 - p) ** (n - i) for i in range(int(k), int(n) + 1))
        return float(mpmath.log10(mpmath.fsum(terms)))


def node_log_p(  # noqa: PLR0913 (the test's own parameters)
    component, level, tail, dof, scale=1.0, nu=None, area=1.0, exceedances=None, p=0.1, effective=None
):
    nu = dof if nu is None else nu
    cells = len(component) if effective is None else effective[len(component)]
    if tail == "exact":
        log_p = cells * log10_chi2_sf(level / scale, nu)
    elif tail == "binomial":
        log_p = log10_binomial_sf(sum(int(exceedances[c]) for c in component), len(component) * dof, p)
    else:
        log_p = cells * log10_chernoff(level / (scale * nu), nu, tail == "chernoff")
    return log_p / area


def log10_by_area(r, cells, scales):
    return np.log10(scales * float(cells) ** 2 * 0.316915 / r) + r * np.log10(4.062570)


def log_pfa(energy, dof, tail, by_area_scales=0, log_tests=None, **model):
    """(H, W) float64: log10 P (by area: plus log10 N(r), or log_tests[r]) of the final region of each cell."""
    nodes = max_tree(energy)
    value = {node: node_log_p(node, level, tail, dof, **model) for node, level in nodes.items()}
    outside = 0.0
    if by_area_scales and log_tests is None:
        log_tests = [0.0] + [log10_by_area(r, energy.size, by_area_scales) for r in range(1, energy.size + 1)]
    if by_area_scales:
        outside = log_tests[1]
        value = {node: v + log_tests[len(node)] for node, v in value.items()}
    result = np.full(energy.shape, outside)
    for node in prune_and_merge(children_of(nodes), value):
        result[tuple(np.array(sorted(node)).T)] = value[node]
    return result


def bilinear(image, height, width):
    """torch's interpolate(mode="bilinear", align_corners=False) by its formula."""
    out = np.empty((height, width))
    rows, cols = image.shape
    for i in range(height):
        for j in range(width):
            y, x = max(0.0, (i + 0.5) * rows / height - 0.5), max(0.0, (j + 0.5) * cols / width - 0.5)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, cols - 1)
            v, u = y - top, x - left
            upper = (1 - u) * image[top, left] + u * image[top, right]
            lower = (1 - u) * image[bottom, left] + u * image[bottom, right]
            out[i, j] = (1 - v) * upper + v * lower
    return out


def colour_means(image, rows, columns):
    """The mean colours (rows, columns, 3) of the parts that an image is cut into."""
    cuts = [np.arange(n + 1) * side // n for n, side in zip((rows, columns), image.shape, strict=False)]
    return np.array(
        [
            [image[top:bottom, left:right].mean(axis=(0, 1)) for left, right in zip(cuts[1], cuts[1][1:], strict=False)]
            for top, bottom in zip(cuts[0], cuts[0][1:], strict=False)
        ]
    )


def likeness(colours, hearts, deep, outside):
    """Twice the probability, less 1, that a colour is of a defect, by normal laws with the covariance outside.

    A heart shows its defect and, where it is not deep, the surroundings: the defect's mean and share are learnt in ten
    steps of expectation and maximisation. Defects are a mixture of no more than sixteen, by their areas.
    """
    if not (hearts and outside.any()):
        return np.zeros(outside.shape)
    covariance = np.cov(colours[outside].T, bias=True) + 4 * np.eye(3)

    def log_density(mean):
        return scipy.stats.multivariate_normal(mean, covariance).logpdf(colours.reshape(-1, 3)).reshape(outside.shape)

    background = log_density(colours[outside].mean(axis=0))
    laws = []
    for heart in sorted(hearts, key=np.count_nonzero, reverse=True)[:16]:
        mean, prior = colours[heart].mean(axis=0), 0.0
        for _ in range(10):
            log_odds = np.where(deep, np.inf, log_density(mean) - background)[heart] + prior
            weights = scipy.special.expit(log_odds)
            mean = np.average(colours[heart], axis=0, weights=weights)
            prior = np.log(weights.sum()) - np.log(scipy.special.expit(-log_odds).sum())
        laws.append((weights.sum(), log_density(mean)))
    areas, densities = zip(*laws, strict=True)
    defects = scipy.special.logsumexp(densities, 0, np.reshape(areas, (-1, 1, 1))) - np.log(np.sum(areas))
    return np.where(outside, -1, np.tanh((defects - background) / 2))


def draw_regions(values, found, usual, quiet, size, image=None):
    """The outlines of what was found, as docs/theory.md has them."""
    rest = values[~found]
    heights = values.astype(float) - (np.median(rest) if rest.size else usual)
    strongest = heights[found].max()
    level = min(max(quiet - usual, strongest / 4), strongest / 2)
    high = heights >= level
    square = np.ones((5, 5))
    count = scipy.ndimage.convolve(high.astype(float), square, mode="constant")
    squares = scipy.ndimage.convolve(np.where(high, heights**2, 0), square, mode="constant")
    around = np.sqrt(squares / np.maximum(count, 1))

    def nearest(cells, shape):
        rows, columns = (np.arange(n) * own // n for n, own in zip(shape, cells.shape, strict=True))
        return cells[np.ix_(rows, columns)]

    def above(shape, share):
        seeds = nearest(found, shape)
        for row, column in np.argwhere(found):
            y, x = ((2 * i + 1) * n // (2 * m) for i, n, m in zip((row, column), shape, values.shape, strict=True))
            seeds[y, x] = True
        fine = bilinear(heights, *shape)
        kept = (strongest > 0) & (fine >= level) & (fine >= bilinear(around, *shape) * share)
        labels, _ = scipy.ndimage.label(kept)
        kept &= np.isin(labels, labels[seeds & kept])
        return scipy.ndimage.binary_fill_holes(kept if kept.any() else seeds)

    if image is None or strongest <= 0:
        return above(size, 0.8)
    grid = tuple(min(4 * n, side) for n, side in zip(values.shape, image.shape, strict=False))
    near = scipy.ndimage.binary_dilation(high | found, square)
    outside = scipy.ndimage.binary_dilation(near, square) & ~near
    inside = above(grid, 1.0)
    regions, count = scipy.ndimage.label(inside | (bilinear(heights, *grid) >= level))
    hearts = [heart for i in range(count) if (heart := inside & (regions == i + 1)).any()]
    half_a_cell = [max((n // own + 1) // 2, 1) for n, own in zip(grid, values.shape, strict=True)]
    window = np.ones([2 * n + 1 for n in half_a_cell])
    deep = scipy.ndimage.binary_erosion(inside, window, border_value=True)
    like = likeness(colour_means(image, *grid), hearts, deep, nearest(outside, grid))
    return above(size, 0.8 * (1 - 0.5 * bilinear(like, *size)))


def log10_number_of_tests(sizes):
    a, b = mpmath.mpf("0.316915"), mpmath.mpf("4.062570")
    return float(mpmath.log10(sum(n * mpmath.fsum(a * b**r / r for r in range(1, n + 1)) for n in sizes)))


def log_nfa(energies, dof, size, tail, by_area=False, models=None):
    """(H, W) of one image, energies per scale (h, w)."""
    models = models or [{}] * len(energies)
    maps = [
        bilinear(log_pfa(e, c, tail, len(energies) if by_area else 0, **m), *size)
        for e, c, m in zip(energies, dof, models, strict=True)
    ]
    return np.min(maps, axis=0) + (0.0 if by_area else log10_number_of_tests([e.size for e in energies]))


def log10_block_tail(count, n, channels, p):
    """log10 P(Bin(n, p) > floor(count / channels)), by the regularised incomplete beta function."""
    k = count // channels
    return float(np.log10(scipy.special.betainc(k + 1, n - k, p)))


# Exact twins of uflow.evaluate.metrics: all scores in memory, in their own precision -------------------------------


def auroc(scores, labels):
    """The Mann-Whitney U statistic with mid-ranks, counted in integers."""
    scores, labels = np.asarray(scores).ravel(), np.asarray(labels, bool).ravel()
    anomalous, normal = scores[labels], np.sort(scores[~labels])
    wins = int(np.searchsorted(normal, anomalous, "left").sum()) + int(
        np.searchsorted(normal, anomalous, "right").sum()
    )
    return wins / (2 * anomalous.size * normal.size)


def aupro(maps, masks, max_fpr=0.3):
    """Without a curve: a defective pixel of a component of n pixels gives 1/n of the part of [0, max_fpr] it is in.

    Detection rises linearly from 0 to 1 between the false-positive rates just above its score and at it.
    """
    normal = np.sort(np.concatenate([scores[~mask] for scores, mask in zip(maps, masks, strict=True)]))
    area, count = 0.0, 0
    for scores, mask in zip(maps, masks, strict=True):
        labels, found = scipy.ndimage.label(mask, np.ones((3, 3)))
        count += found
        defects, inside = scores[mask], labels[mask]
        before, at = (1 - np.searchsorted(normal, defects, side) / normal.size for side in ("right", "left"))
        step = at - before
        rise = np.clip(max_fpr - before, 0, step)
        ramp = np.divide(rise * rise / 2, step, out=np.zeros_like(rise), where=step > 0)
        area += ((ramp + np.clip(max_fpr - at, 0, None)) / np.bincount(inside)[inside]).sum()
    return area / count / max_fpr


def iou(mask, truth):
    union = np.count_nonzero(mask | truth)
    return np.count_nonzero(mask & truth) / union if union else 1.0


def mean_iou(masks, truths):
    return float(np.mean([iou(mask, truth) for mask, truth in zip(masks, truths, strict=True)]))


def best_iou(maps, masks):
    """The best mean IoU of one threshold: all scores of defective pixels are tried at once, and "above everything"."""
    candidates = np.unique(np.concatenate([scores[mask] for scores, mask in zip(maps, masks, strict=True)]))
    totals = np.zeros(candidates.size + 1)
    for scores, mask in zip(maps, masks, strict=True):
        ranked, defects = np.sort(scores, axis=None), np.sort(scores[mask])
        found = ranked.size - np.searchsorted(ranked, candidates)
        true = defects.size - np.searchsorted(defects, candidates)
        totals += np.append(true / np.maximum(found + defects.size - true, 1), not defects.size)
        if not defects.size:
            totals[:-1] += found == 0  # nothing found where nothing is
    return totals.max() / len(maps)


def pixel_f1(masks, truths):
    """From precision and recall over all pixels."""
    found, true = (np.concatenate([each.ravel() for each in images]) for images in (masks, truths))
    hits = np.count_nonzero(found & true)
    if not hits:
        return 0.0
    precision, recall = hits / np.count_nonzero(found), hits / np.count_nonzero(true)
    return 2 * precision * recall / (precision + recall)
