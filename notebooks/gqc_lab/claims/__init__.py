"""Published claims, the rules that decide them, and their verdicts from committed results.

``paper/claims.yaml`` states each claim and the rule that decides it
(:mod:`~gqc_lab.claims.rules`); ``paper/results`` holds what the runs gave, small and sealed
(:mod:`~gqc_lab.claims.frozen`); :mod:`~gqc_lab.claims.verdicts` puts the two together, and
:mod:`~gqc_lab.claims.render` writes what people read.  Nothing here trains.
"""

from gqc_lab.claims.evidence import show_evidence, show_verdicts
from gqc_lab.claims.frozen import Frozen, freeze, load_frozen
from gqc_lab.claims.rules import Claim, Part, read_claims
from gqc_lab.claims.verdicts import Verdict, evaluate

__all__ = ["Claim", "Frozen", "Part", "Verdict", "evaluate", "freeze", "load_frozen", "read_claims"]
__all__ += ["show_evidence", "show_verdicts"]
