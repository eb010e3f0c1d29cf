/* test_install.c - make install and make uninstall, into a temporary DESTDIR: the programs run from there, find their
 * libraries, have manual pages and completions, and nothing is left.
 *
 * Needs everything that `make all` builds. */
#include "models.h" /* models_setup, models_teardown */
#include "run.h"    /* sh */
#include "shell.h"  /* run, out, assert_holds, said */

#define MAKE "MAKEFLAGS= MAKELEVEL= make -s DESTDIR=$T/root PREFIX=/opt/llmc "
#define BIN  "$T/root/opt/llmc/bin/"

static void installed_programs_run(void **state) {
    (void)state;
    sh(MAKE "install");
    run(0, BIN "llmc-train-sft --version");
    assert_holds(out, "llmc-train-sft (llmc) 0.");
    run(0, BIN "llmc-train-sft --help"); /* its examples name installed programs */
    assert_holds(out, "Usage: llmc-train-sft ");
    assert_holds(out, "  llmc-make-shard -i chat.jsonl -o chat.shard\n");
    assert_null(strstr(out, "train_sft"));
    run(0,
        "cd / && " BIN "llmc-make-tasks --task sort --items 2 --count 20 --format chat -o $T/chat.shard && " BIN
        "llmc-train-sft --layers 1 --width 32 --heads 2 --context 32 -i $T/chat.shard -o $T/m.bin -x 1 --quiet && " BIN
        "llmc-show --records 1 $T/chat.shard");
    assert_holds(out, "record shard, kind chat");
    for (const char *const *name = (const char *const[]){"generate", "make-prefs", "pick", "show", NULL}; *name;
         name++) {
        char command[200];
        snprintf(command, sizeof command, "cd $T/root/opt/llmc/share && test -s bash-completion/completions/llmc-%s",
                 *name);
        run(0, command);
        snprintf(command, sizeof command, "cd $T/root/opt/llmc/share && test -s zsh/site-functions/_llmc-%s", *name);
        run(0, command);
    }
    run(0, "ls $T/root/opt/llmc/bin");
    assert_null(strstr(out, ".so"));
}

/* The library for several ranks is in lib/llmc and is found there. */
static void libraries_are_found(void **state) {
    (void)state;
    run(0, "command -v mpirun && test -e llmc_mpi.so || echo absent");
    if (strstr(out, "absent")) return;
    run(0, "cd / && mpirun --allow-run-as-root --oversubscribe -n 2 " BIN
           "llmc-train-sft --layers 1 --width 32 --heads 2 --context 32 -i $T/chat.shard -o $T/n.bin -x 1 2>&1");
    assert_holds(out, "2 ranks of ");
    run(1,
        "mv $T/root/opt/llmc/lib $T/root/opt/llmc/elsewhere; cd / && mpirun --allow-run-as-root --oversubscribe -n 2 " BIN
        "llmc-train-sft --layers 1 --width 32 --heads 2 --context 32 -i $T/chat.shard -o $T/n.bin -x 1");
    assert_holds(said, "llmc_mpi.so");
    run(0, "mv $T/root/opt/llmc/elsewhere $T/root/opt/llmc/lib");
}

static void completions_complete(void **state) {
    (void)state;
    run(0,
        "bash -c '. $T/root/opt/llmc/share/bash-completion/completions/llmc-train-sft; compopt() { :; }; "
        "try() { COMP_WORDS=(llmc-train-sft \"$@\"); COMP_CWORD=$#; COMPREPLY=(); _llmc_train_sft; echo ${COMPREPLY[*]}; }; "
        "try --learning-r; try --no-comp; try --lr-scheduler-type co; try -x \"\"; cd $T && try -i chat.s'");
    assert_string_equal(out, "--learning-rate\n--no-completion-only-loss\nconstant cosine\n\nchat.shard\n");
}

static void pages_are_installed(void **state) {
    (void)state;
    run(0, "command -v help2man || echo absent");
    if (strstr(out, "absent")) return;
    run(0, "cat $T/root/opt/llmc/share/man/man1/llmc-train-sft.1");
    assert_holds(out, ".SH SYNOPSIS");
    assert_holds(out, "Fine\\-tunes a model on conversations");
    assert_holds(out, "\\fB\\-\\-batch\\-tokens\\fR N");
}

static void uninstall_leaves_nothing(void **state) {
    (void)state;
    run(0, "echo kept >" BIN "other && ls $T/root/opt/llmc/share");
    sh(MAKE "uninstall");
    run(0, "cd $T/root && find . ! -type d; find . -path '*llmc/*llmc'");
    assert_string_equal(out, "./opt/llmc/bin/other\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(installed_programs_run),   cmocka_unit_test(libraries_are_found),
        cmocka_unit_test(completions_complete),     cmocka_unit_test(pages_are_installed),
        cmocka_unit_test(uninstall_leaves_nothing),
    };
    return cmocka_run_group_tests_name("install", tests, models_setup, models_teardown);
}
