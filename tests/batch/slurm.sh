#!/usr/bin/env bash

#SBATCH -J coalora
#SBATCH -p gpu
#SBATCH -n 1
#SBATCH --cpus-per-task=8
#SBATCH --mem=30G
#SBATCH -t 02:00:00
#SBATCH --gres=gpu:1
export OMP_NUM_THREADS=8
export MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=33554432
python -m distributed.cli.dask_worker <scheduler> --name <worker> --nthreads 1 --memory-limit 29.80GiB --nanny --death-timeout 60
