"""Passes over a program, and the methods that plug into them.

The folders are the stages of a pipeline. With default options, passes read and make these facts:

    stage            pass                   reads                                   makes
    analysis         analyze                Dependencies                            Dependencies, Eligible
    calibration      calibrate              Dependencies, Eligible                  Calibration, Statistics
    calibration      gradients              Dependencies, Eligible, Calibration     GradientSums, ParameterGradients
    calibration      measure-latency        Dependencies, Eligible                  Dependencies
    calibration      measure-routing        Dependencies, Eligible, Calibration     Routing
    scores           score                  Dependencies, Eligible                  Eligible, Scores
    sensitivity      measure-sensitivity    Dependencies, Eligible, Scores,         Sensitivities
                                            Calibration
    allocation       allocate               Dependencies, Eligible, Scores          Shares
    allocation       iterative              Dependencies, Eligible
    allocation       search                 Dependencies, Eligible, Calibration     Eligible, Scores
    selection        local-search           Dependencies, Statistics, FullMoments,  Plan
                                            Plan
    selection        select                 Dependencies, Eligible, Scores, Shares  Plan
    depth            drop-blocks            Dependencies, Eligible, Calibration     Dropped, Plan, Verification
    rotation         fuse-norms             Dependencies, Eligible                  Dependencies, Eligible, Rotatable,
                                                                                    Verification
    rotation         rotate                 Dependencies, Eligible, Rotatable,      Scores, Verification
                                            Statistics, FullMoments
    rewriting        follow                 Dependencies, Eligible                  Eligible, Followable
    rewriting        rewrite                Dependencies, Plan                      Rewritten
    low_rank         allocate-ranks         Dependencies, Eligible                  Plan
    low_rank         factorize              Dependencies, Plan, Calibration         Factored, Verification
    low_rank         group-embeddings       Dependencies, Eligible, Calibration,    EmbeddingGroups, Plan
                                            GradientSums, FactorGradients
    experts          split-experts          Dependencies, Eligible, Calibration     ExpertSplit, Plan, Verification
    reconstructions  batch-norm-statistics  Rewritten, Calibration                  Refits
    reconstructions  last-norm              Rewritten, Calibration                  Refits, RefittedNorm
    reconstructions  merge-experts          Rewritten, Calibration, Plan            Refits
    reconstructions  refit                  Rewritten, Calibration                  Refits
    reconstructions  round-weights          Dependencies, Calibration               Refits, RoundedWeights
    verification     verify                 Rewritten, Plan                         Verification
"""

from graphprune.registry import discover

discover(__name__, __path__)
