"""The rows of the learning table: every method of `tutelage rl`, `prefer`, `sft` and `reward`, with its named settings."""

from __future__ import annotations

from dataclasses import replace

from learning_tasks import Row
from learning_world import MAX_NEW_TOKENS
from tutelage.algorithms.assessment import Classifier, Regression
from tutelage.algorithms.best_of_n import BestOfN
from tutelage.algorithms.distill import Distill
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.kto import KTO
from tutelage.algorithms.nash_md import NashMD
from tutelage.algorithms.online_dpo import OnlineDPO
from tutelage.algorithms.outcome_value import OutcomeValue
from tutelage.algorithms.ppo import PPO
from tutelage.algorithms.preference import DPO, IPO
from tutelage.algorithms.preference_model import PreferenceModel
from tutelage.algorithms.reinforce import Reinforce
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.algorithms.sft import SFT

PLAIN = Reinforce(group_size=8)
GROUP = GRPO(group_size=8, max_length=MAX_NEW_TOKENS)
DUEL = NashMD(group_size=4)
"""Four answers and the rival's four: as many as the others sample."""

ROWS: tuple[Row, ...] = (
    Row("reinforce", "rl", PLAIN),
    Row("reinforce_no_baseline", "rl", replace(PLAIN, baseline="none")),
    Row("reinforce_group_mean", "rl", replace(PLAIN, baseline="group_mean")),
    Row("reinforce_value", "rl", replace(PLAIN, baseline="value")),
    Row("reinforce_bandit", "rl", replace(PLAIN, credit="answer")),
    Row("rloo", "rl", replace(PLAIN, **Reinforce.presets["rloo"])),  # type: ignore[arg-type]
    Row("ppo", "rl", PPO(group_size=8)),
    # At 1e-3 seeds 0, 4 and 5 learned and swung by 0.06 from look to look; at 5e-4 seeds 0 and 4 rose steadily and further
    Row("ppo_shared_trunk", "rl", PPO(group_size=8), rate=5e-4, shared_trunk=True),
    Row("grpo", "rl", GROUP),
    Row("dr_grpo", "rl", replace(GROUP, **GRPO.presets["dr_grpo"])),  # type: ignore[arg-type]
    # Half the steps: an attempt may sample every prompt's answers a second time
    Row("dapo", "rl", replace(GROUP, **{**GRPO.presets["dapo"], "attempts": 1}), steps=0.5),  # type: ignore[arg-type]
    Row("gspo", "rl", replace(GROUP, **GRPO.presets["gspo"])),  # type: ignore[arg-type]
    Row("cispo", "rl", replace(GROUP, **GRPO.presets["cispo"]), rate=5e-4),  # type: ignore[arg-type]
    Row("entropy_bonus", "rl", replace(GROUP, entropy_coefficient=0.003)),
    Row("clip_higher", "rl", replace(GROUP, clip_high=0.28, passes=2, minibatches=2), rate=5e-4),
    Row("temperature_schedule", "rl", GROUP, variant="cooling"),
    Row("kl_in_reward", "rl", replace(PLAIN, **Reinforce.presets["rloo"], kl_coefficient=0.1)),  # type: ignore[arg-type]
    Row("kl_in_loss", "rl", replace(GROUP, kl_coefficient=0.1)),
    Row("nash_md", "rl", DUEL),
    Row("nash_self_play", "rl", replace(DUEL, **NashMD.presets["self_play"])),  # type: ignore[arg-type]
    Row("nash_past_policies", "rl", replace(DUEL, **NashMD.presets["past_policies"])),  # type: ignore[arg-type]
    Row("best_of_n", "rl", BestOfN(group_size=8)),
    # At 1e-3 the majority comes to agree on what is wrong (.32, .27, .23 after .37, .41, .37 on seeds 0, 4, 5); 2e-4: .47, .47, .41
    Row("self_improvement", "rl", BestOfN(group_size=8), rate=2e-4, variant="majority"),
    Row("online_dpo", "rl", OnlineDPO(group_size=8)),
    Row("distill_on_policy", "rl", Distill(divergence="reverse_kl", group_size=8)),
    Row("dpo", "prefer", DPO(), rate=1e-4),
    Row("language_feedback", "prefer", DPO(), rate=1e-4, variant="rewritten"),
    Row("ipo", "prefer", IPO(), rate=1e-4),
    # A third of the start's answers are right: lambda_D n_D is then about lambda_U n_U, as the paper asks (seeds 0, 4, 5)
    Row("kto", "prefer", KTO(desirable_weight=2.0), rate=1e-4),
    Row("sft", "sft", SFT()),
    Row("distill_token", "sft", Distill()),
    Row("distill_sequence", "sft", Distill(level="sequence")),
    # A fresh head has further to go: at 3e-3 Bradley-Terry ends at .83 and .81 on seeds 0 and 4, at 1e-3 at .69 and .70
    Row("bradley_terry", "reward", BradleyTerry(), rate=3e-3, steps=2.0),
    Row("preference_model", "reward", PreferenceModel(), rate=3e-3),
    # Answers judged alone: 20 steps at 3e-3 ended at .60 to .76 (classifier, regression) and .53 to .67 (outcome value) on seeds
    # 0, 4 and 5, and 40 steps of the classifier once at .43; 80 steps at 1e-3 at .72 to .88 on seeds 0 and 4
    Row("classifier", "reward", Classifier(), rate=1e-3, steps=4.0),
    Row("regression", "reward", Regression(), rate=1e-3, steps=4.0),
    Row("outcome_value", "reward", OutcomeValue(), rate=1e-3, steps=4.0),
)
