#!/bin/sh
# The first line of the image's commands names this script. It keeps from them what of the host's
# environment would lead them astray, since Apptainer hands all of it on.
for name in $(env | sed -nE 's/^((CONDA|FSL|GOMP|ITK|JOBLIB|KMP|LC|LD|MPL|NIPYPE|NUMBA|OMP|PYTHON|TEMPLATEFLOW|XDG)[A-Za-z0-9_]*|ANTSPATH|BASH_ENV|LANGUAGE|VIRTUAL_ENV)=.*/\1/p')
do
    # Apptainer's own, which leads to the GPU's driver.
    [ "$name" = LD_LIBRARY_PATH ] || unset "$name"
done
export LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1
if [ -d /opt/fsl/bin ]; then
    export FSLDIR=/opt/fsl FSLOUTPUTTYPE=NIFTI_GZ FSLMULTIFILEQUIT=TRUE
fi
# A folder of the host that is not mounted.
[ -w "${TMPDIR:-/tmp}" ] || unset TMPDIR
exec "${0%/*}/python" "$@"
