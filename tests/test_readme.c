/* The README's chain of all stages, run as it is written there: from fine-tuning over a reward model, PPO and DPO to the
 * evaluation, in one pipeline. Needs the programs and data/. */
#include "models.h"

/* "reward" of what evaluate wrote. */
static double reward(const char *name) {
    char *text = text_of(files_path(name));
    json_t *all = json_loads(text, 0, NULL);
    free(text);
    assert_true(json_is_real(json_object_get(all, "reward")));
    const double value = json_real_value(json_object_get(all, "reward"));
    json_decref(all);
    return value;
}

static void the_chain(void **state) {
    (void)state;
    run(0,
        "mkdir -p $T && awk '/^### /{ chain = /The whole chain/ } /^```/{ code = chain && /^```sh/; next } code' README.md |"
        "sed \"s|tour/|$T/|g\" >$T/chain.sh && test $(wc -l <$T/chain.sh) -gt 15 && sh -e $T/chain.sh");
    const double policy = reward("policy.json"), ppo = reward("ppo.json"), dpo = reward("dpo.json");
    print_message("reward: %.2f fine-tuned, %.2f after PPO, %.2f after DPO\n", policy, ppo, dpo);
    assert_true(ppo > policy + 0.5 && dpo > policy + 0.5);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_chain)};
    return cmocka_run_group_tests(tests, models_setup, models_teardown);
}
