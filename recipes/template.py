"""Store the template at 2 mm in the package: resampling it takes seconds in each process.

It is MNI152NLin2009aSym as nilearn distributes it, (c) 1993-2004 Louis Collins, McConnell Brain
Imaging Centre, McGill University, whose notice permits copies and derived works.

    python recipes/template.py
"""

import numpy as np

from bids_harmony.anat.template import STORED, STORED_MM, from_nilearn

if __name__ == "__main__":
    found = from_nilearn(STORED_MM)
    np.savez_compressed(
        STORED,
        t1w=np.asarray(found.t1w.dataobj),
        mask=found.mask,
        affine=found.t1w.affine,
        **found.tissues,
    )
    print(STORED)
