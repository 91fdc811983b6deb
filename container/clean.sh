#!/bin/sh
# Interpreter of the image's commands. It removes variables of the host's environment that would change
# their behaviour, since Apptainer passes on all of it.
for name in $(env | sed -nE 's/^((CONDA|FSL|GOMP|ITK|JOBLIB|KMP|LC|LD|MPL|NIPYPE|NUMBA|OMP|PYTHON|TEMPLATEFLOW|XDG)[A-Za-z0-9_]*|ANTSPATH|BASH_ENV|LANGUAGE|VIRTUAL_ENV)=.*/\1/p')
do
    # Apptainer sets it to the folder of the GPU driver.
    [ "$name" = LD_LIBRARY_PATH ] || unset "$name"
done
export LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1
if [ -d /opt/fsl/bin ]; then
    export FSLDIR=/opt/fsl FSLOUTPUTTYPE=NIFTI_GZ FSLMULTIFILEQUIT=TRUE
fi
# TMPDIR may be a folder of the host that is not mounted.
[ -w "${TMPDIR:-/tmp}" ] || unset TMPDIR
exec "${0%/*}/python" "$@"
