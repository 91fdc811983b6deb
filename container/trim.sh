#!/bin/sh
# Remove from an environment what no run needs: headers, packages' own tests, debugging symbols.
set -eu
site=$(echo "$1"/lib/python3*/site-packages)
rm -rf "$site/torch/include" "$site/torch/share"
# torch starts its shared-memory manager from bin; the rest are its test programs.
find "$site/torch/bin" -type f ! -name torch_shm_manager -delete
# Named one by one: some packages (nilearn) import from their own tests.
for name in matplotlib networkx nitransforms numpy pandas prov scipy skimage sklearn statsmodels \
    sympy torch traits; do
    find "$site/$name" -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
done
# Those in *.libs were renamed by their wheels' builder, which strip does not survive.
find "$site" -name '*.libs' -prune -o -name '*.so' -type f -exec strip --strip-unneeded {} +
