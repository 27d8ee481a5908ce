"""What is asked of the parts in SQL: long tables, and the number that each prompt has for each label of a profile.

The unit of sampling is the prompt: first a number per prompt, then a mean over prompts. Tokens of one prompt are not
independent, and a standard error over them would be too small.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lens_scopes.results.profiles import By


def prompts(paths: Sequence[Path]) -> str:
    """A row per prompt, those that failed too."""
    return f"select * from read_parquet([{', '.join(map(_text, map(str, paths)))}])"


def tokens(sites: Sequence[str]) -> str:
    """A row per number, out of the view ``prompts``: site, position, token, and head where there is one."""
    # [target_pos, site, pos, head], row by row; an axis that is not there has size 0.
    return f"""
        with flat as (
            select "row", id, units, tokens, positions, shape, unnest(scores) as score, unnest(stderr) as stderr,
                generate_subscripts(scores, 1) - 1 as n,
                greatest(shape[4], 1) as heads, shape[3] as length, shape[2] as sites
            from prompts where error is null)
        select "row", id,
            if(shape[1] = 0, positions[-1], positions[flat.n // (heads * length * sites) + 1]) as target_pos,
            ([{", ".join(map(_text, sites))}])[flat.n // (heads * length) % sites + 1] as site,
            flat.n // heads % length as pos, tokens[flat.n // heads % length + 1] as token,
            if(shape[4] = 0, null, flat.n % heads) as head, score, stderr
        from flat"""


def heads(layers: int) -> str:
    """A row per head and MLP of the flows, out of the view ``prompts``; head is null of an MLP."""
    return f"""
        with flat as (
            select "row", id, total, unnest(heads) as influence, generate_subscripts(heads, 1) - 1 as n,
                len(heads) // {layers} as width
            from prompts where heads is not null)
        select "row", id, flat.n // width as layer, if(flat.n % width = width - 1, null, flat.n % width) as head,
            if(flat.n % width = width - 1, 'mlp', 'head') as kind, influence, influence / total as share
        from flat"""


#: By kind of profile, a number for each prompt and label, out of the views. ``joined`` is how positions are joined.
EACH = {
    "site": 'select "row", site as label, {joined} as value from tokens group by all',
    "head": """select "row", site || '|' || head as label, {joined} as value from tokens group by all""",
    "flow": """select "row", layer || '.' || head as label, influence as value from heads where kind = 'head'""",
    "token": 'select "row", token as label, avg(score) as value from tokens '
    "where site = {site} and pos <= target_pos group by all",
    "relative_position": 'select "row", least({bins} - 1, pos * {bins} // greatest(target_pos, 1)) as label, '
    "avg(score) as value from tokens where site = {site} and pos <= target_pos group by all",
}
OF_ONE_SITE = ("token", "relative_position")
JOINED = {"norm": "sqrt(sum(score * score))", "squared": "sum(score)", "signed": "sum(score)"}


def each(by: str, units: str, site: str, bins: int) -> str:
    """The query of a profile: columns row, label and value.

    Raises:
        ValueError: there is no such profile.

    """
    if by not in EACH:
        msg = f"a profile of a corpus is by {', '.join(map(repr, get_args(By)))}, got {by!r}; write by='site'"
        raise ValueError(msg)
    return EACH[by].format(joined=JOINED[units], site=_text(site), bins=int(bins))


def commonest(query: str, top: int) -> str:
    """Of such a query, the labels that most prompts have."""
    order = f"select label from every group by label order by count(*) desc, label limit {int(top)}"
    return f"with every as ({query}) select * from every where label in ({order})"


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
