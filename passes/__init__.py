"""Passes over a program, and the methods that plug into them.

The folders are the stages of a pipeline. With default options, passes read and make these facts:

    stage            pass                   reads                                          makes
    analysis         analyze                                                               Dependencies, Eligible
    calibration      calibrate              Dependencies, Eligible                         Calibration, Statistics
    calibration      gradients              Dependencies, Eligible, Calibration            GradientSums
    calibration      measure-latency        Dependencies, Eligible                         Dependencies
    scores           score                  Dependencies, Eligible                         Scores
    sensitivity      measure-sensitivity    Dependencies, Eligible, Scores, Calibration    Sensitivities
    allocation       allocate               Dependencies, Eligible, Scores                 Shares
    allocation       reach                  Dependencies, Eligible
    allocation       search                 Dependencies, Eligible, Calibration            Scores
    selection        local-search           Dependencies, Statistics, Plan                 Plan
    selection        select                 Dependencies, Eligible, Scores, Shares         Plan
    depth            drop-blocks            Dependencies, Eligible, Calibration            Dropped, Plan, Verification
    rotation         fuse-norms             Dependencies, Eligible                         Rotatable, Verification
    rotation         rotate                 Dependencies, Eligible, Rotatable, Statistics  Scores, Verification
    rewriting        rewrite                Plan                                           Rewritten
    low_rank         allocate-ranks         Dependencies, Eligible                         Plan
    low_rank         factorize              Dependencies, Plan, Calibration                Factored, Verification
    reconstructions  batch-norm-statistics  Rewritten, Calibration                         Refits
    reconstructions  finetune               Rewritten, Calibration                         Refits
    reconstructions  refit                  Rewritten, Calibration, Statistics             Refits
    reconstructions  room                   Dependencies, Eligible
    verification     verify                 Rewritten, Plan                                Verification
"""

from graphprune.registry import discover

discover(__name__, __path__)
