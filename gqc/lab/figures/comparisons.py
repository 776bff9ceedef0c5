"""Figures of methods compared run against run; frames are those of `gqc.lab.analysis_comparisons`.

Like `gqc.lab.figures`: data in, a plotly figure out.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from gqc.lab.analysis import check_columns
from gqc.lab.figures.style import HOUSE, LABELS, OKABE_ITO, method_styles, plain_numbers

MAX_BANDS = 3


def performance_profile(
    profiles: pd.DataFrame, value: str, by: str = "method", is_lower_better: bool = True
) -> go.Figure:
    """Share of runs that reach each value, a step curve in its band for each method.

    More than `MAX_BANDS` methods have no bands: they would hide each other.

    Args:
        profiles: as `performance_profiles` returns.
        value: the compared column.
        is_lower_better: as the profiles were made.
    """
    check_columns("performance_profile", profiles, [by, value, "fraction", "low", "high"])
    label = LABELS.get(value, value.replace("_", " "))
    side, shape = ("below", "hv") if is_lower_better else ("above", "vh")
    figure = go.Figure(
        layout={
            "template": HOUSE,
            "title_text": "Performance profiles",
            "xaxis": {"title_text": label, "rangemode": "normal"},
            "yaxis": {"title_text": f"share of runs at or {side}", "range": [0, 1.02]},
        }
    )
    methods = {str(method): curve for method, curve in profiles.groupby(by, sort=False)}
    styles = method_styles(methods)
    for method, curve in methods.items():
        color, x = styles[method]["color"], plain_numbers(curve[value])
        rgb = ",".join(str(int(color[k : k + 2], 16)) for k in (1, 3, 5))
        edge: dict[str, Any] = {"mode": "lines", "line": {"width": 0, "shape": shape}}
        edge |= {"hoverinfo": "skip", "showlegend": False, "legendgroup": method}
        band = {"fill": "tonexty", "fillcolor": f"rgba({rgb},0.15)"}
        if len(methods) <= MAX_BANDS:
            figure.add_scatter(x=x, y=plain_numbers(curve["high"]), **edge)
            figure.add_scatter(x=x, y=plain_numbers(curve["low"]), **edge, **band)
        line = styles[method] | {"shape": shape}
        name = f"{method}: {int(curve['n'].iloc[0])} runs"
        shown = {"mode": "lines", "line": line, "name": name, "legendgroup": method}
        figure.add_scatter(x=x, y=plain_numbers(curve["fraction"]), **shown)
    return figure


def improvement(probabilities: pd.DataFrame, by: str = "method") -> go.Figure:
    """Probability that a run is better than one of the control: a point in its interval a method.

    Args:
        probabilities: as `probability_of_improvement` returns.
    Raises: ValueError: a column is missing, or no method is compared.
    """
    needs = [by, "control", "probability", "low", "high", "n", "interval"]
    check_columns("improvement", probabilities, needs)
    if probabilities.empty:
        raise ValueError("improvement: no rows; expected one for each method but the control")
    rows = probabilities.iloc[::-1]  # the first on top
    control = rows["control"].iloc[0]
    title = f"Probability that a run is better than one of {control}"
    figure = go.Figure(
        layout={
            "template": HOUSE,
            "title_text": title,
            "height": 160 + 44 * len(rows),
            "hovermode": "closest",
            "xaxis": {"title_text": "probability of improvement", "range": [-0.02, 1.02]},
            "yaxis": {"type": "category", "range": [-0.6, len(rows) - 0.4]},
            "showlegend": False,
        }
    )
    above, below = rows["high"] - rows["probability"], rows["probability"] - rows["low"]
    bars = {"array": plain_numbers(above), "arrayminus": plain_numbers(below), "thickness": 2}
    figure.add_scatter(
        x=plain_numbers(rows["probability"]),
        y=[f"{row[by]} ({row['n']} runs)" for _, row in rows.iterrows()],
        mode="markers",
        marker={"size": 10, "color": OKABE_ITO[0]},
        error_x={"type": "data", "symmetric": False, "width": 6, **bars},
        text=list(rows["interval"]),
        hovertemplate="%{y}: %{x:.2f}<br>interval: %{text}<extra></extra>",
    )
    figure.add_vline(x=0.5, line={"color": "#444444", "dash": "dot"})
    figure.add_annotation(
        x=0.5, y=1, yref="paper", yanchor="bottom", text="no difference", showarrow=False
    )
    return figure
