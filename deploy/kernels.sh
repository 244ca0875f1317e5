#!/bin/sh
# kernels.sh PREFIX: leave the machine code of the usual kernels in PREFIX/kernels, for the processor that every node has
# at least. What a job needs beside it (another number of factors, another loss) is compiled where it runs.
set -eu
prefix=$1
kernels=$prefix/kernels scratch=$(mktemp -d)
mkdir -p "$kernels"
case $(uname -m) in
x86_64) echo '{"cpu": "x86-64-v3", "needs": ["avx2", "bmi2", "fma"]}' ;; # since 2013 (Intel), 2015 (AMD)
*) echo '{"cpu": "generic", "needs": []}' ;;
esac >"$kernels/target.json"
export DFM_KERNELS="$kernels" NUMBA_CACHE_DIR="$kernels" HOME="$scratch" DASK_TEMPORARY_DIRECTORY="$scratch"
"$prefix/bin/dfm" synth "$scratch/log" --rows 4000 --days 2 --shards-per-day 1 --workers 1 --json >/dev/null
cat >"$scratch/job.toml" <<END
[data]
train = "$scratch/log/day=*"
[schema]
label = "label"
numeric = ["I*"]
categorical = ["C*"]
[model]
hash_bits = 14
[training]
n_epochs = 2
n_replicas = 2
[cluster]
workers = 1
END
for factors in 4 8 16; do
    for optimizer in adagrad adagrad-row; do
        "$prefix/bin/dfm" train "$scratch/job.toml" --set model.n_factors=$factors --set training.optimizer=$optimizer \
            --set "output.directory=$scratch/$factors-$optimizer" --json >/dev/null
    done
done
rm -rf "$scratch"
chmod -R a+rX "$kernels"
