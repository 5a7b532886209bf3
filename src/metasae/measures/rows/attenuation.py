"""What noise in the rows does to measures of decomposability, and what is left after it is taken out.

Model: two seeds find the same directions g_i, each with noise of its own, w_i = sqrt(p_i) g_i + sqrt(1 - p_i) z_i, all
of length 1; z_i is random, independent between latents and seeds and so, in many dimensions, at right angles to
everything else. Then

    cos(w_i, w'_i) = p_i
    cos(w_i, w_j)  = sqrt(p_i p_j) cos(g_i, g_j)
    VE(w)          = r VE(g) + (1 - r) VE(z)

where w'_i is the match in the other seed, r_i = p_i the share of row i that is no noise, and r the mean of p_i, if how
noisy a row is and how well it is explained are unrelated. The first line holds when both seeds are equally noisy. The
second is the correction for attenuation of C. Spearman (American Journal of Psychology 15, 1904). In the third, VE(z),
what the critic explains of the noise, lies between 0 and VE_0, its score on random rows, so

    (VE(w) - (1 - r) VE_0) / r  <=  VE(g)  <=  VE(w) / r

when the critic finds the directions as well through the noise as without it; held-out VE falls a little more, as it
does not quite. So a penalty that only adds noise to the rows lowers VE and r together and leaves VE / r about where it
was, and one that makes the directions themselves less decomposable lowers VE / r. But r is low for another reason too:
directions that only one seed found. Then VE / r is too large (above 1 it plainly is), and r itself is largely the
chance that `seeds.chance_matching` gives; so it is read beside both.
"""


def attenuation(ve: float | None, floor: float | None, mean_r: float | None) -> tuple[float | None, float | None]:
    """(ve / r, (ve - (1 - r) floor) / r): what the critic explains of the directions, if it explains none of the noise,
    and if it explains the noise as it does random rows.

    ve: variance of an SAE's rows that a critic explains. floor: of random rows. mean_r: r, the mean cosine of its rows
    with their matches in another seed (`seeds.Matching.mean_r`). None where a number in the formula is None or r is not
    positive.
    """
    if ve is None or mean_r is None or mean_r <= 0:
        return None, None
    return ve / mean_r, None if floor is None else (ve - (1 - mean_r) * floor) / mean_r
