/* test_rows.c - rows of data in the conventions that data sets use: a row of each convention and the record that it
 * becomes; flags, labels, reasoning and calls of messages; fields that are joined, named and not read; and the files that
 * rows come in. Needs ./data/make_shard, ./data/show, train_sft and generate. */
#include "../llmc/base/error.h"    /* Error */
#include "../llmc/base/text.h"     /* TextBuffer, text_format, text_free, text_append */
#include "../llmc/records/shard.h" /* RECORD_CHAT, shard_close, RECORD_PREFERENCE, RECORD_PROMPT, ... */
#include "files.h"                 /* files_path, files_put, files_directory, files_setup, ... */
#include "shards.h"                /* refused, open_shard, assert_record */
#include "shell.h"                 /* run, assert_holds, put, out, ... */
#include <jansson.h>
#include <zlib.h>

static int setup(void **state) { return files_setup(state) || setenv("T", files_directory, 1); }

static int teardown(void **state) {
    free(said), free(out);
    return files_teardown(state);
}

#define U "<|im_start|>user\n"
#define S "<|im_start|>system\n"
#define A "<|im_start|>assistant\n"
#define E "<|im_end|>\n"

/* ---- conventions ----------------------------------------------------------------------------------------------- */

static const struct Convention {
    const char *name;
    RecordKind kind;
    const char *row, *record;
    const char *warning; /* NULL: none */
} conventions[] = {
    {"TRL, language modelling, conversational", RECORD_CHAT,
     "{'messages':[{'role':'user','content':'q'},{'role':'assistant','content':'a'}]}", U "q" E A "[a<|im_end|>]\n",
     NULL},
    {"TRL, prompt-completion, standard", RECORD_CHAT, "{'prompt':'q','completion':' a'}", "q[ a<|endoftext|>]", NULL},
    {"TRL, prompt-completion, conversational: the prompt's answers are not trained on", RECORD_CHAT,
     "{'prompt':[{'role':'user','content':'q'},{'role':'assistant','content':'old'},{'role':'user','content':'r'}],"
     "'completion':[{'role':'assistant','content':'new'}]}",
     U "q" E A "old" E U "r" E A "[new<|im_end|>]\n", NULL},
    {"TRL, continue_final_message", RECORD_CHAT,
     "{'prompt':[{'role':'user','content':'q'},{'role':'assistant','content':'It is '}],'completion':'four'}",
     U "q" E A "It is [four<|im_end|>]\n", NULL},
    {"TRL, prompt-only, conversational", RECORD_PROMPT, "{'prompt':[{'role':'user','content':'q'}]}", U "q" E A,
     "neither an answer nor a task"},
    {"TRL, GRPO with a solution", RECORD_PROMPT, "{'prompt':[{'role':'user','content':'q'}],'solution':'4'}", U "q" E A,
     NULL},
    {"TRL, preference, explicit", RECORD_PREFERENCE,
     "{'prompt':[{'role':'user','content':'q'}],'chosen':[{'role':'assistant','content':'y'}],"
     "'rejected':[{'role':'assistant','content':'n'}]}",
     U "q" E A "|y<|im_end|>|n<|im_end|>", NULL},
    {"TRL, preference, implicit", RECORD_PREFERENCE,
     "{'chosen':[{'role':'user','content':'q'},{'role':'assistant','content':'y'}],"
     "'rejected':[{'role':'user','content':'q'},{'role':'assistant','content':'n'}]}",
     U "q" E A "|y<|im_end|>|n<|im_end|>", NULL},
    {"a text prompt, answers as messages", RECORD_PREFERENCE,
     "{'prompt':'q','chosen':[{'role':'assistant','content':'y'}],'rejected':[{'role':'assistant','content':'n'}]}",
     U "q" E A "|y<|im_end|>|n<|im_end|>", NULL},
    {"a ranking of texts", RECORD_PREFERENCE, "{'prompt':'q','completions':['a','b','c']}",
     "q|a<|endoftext|>|b<|endoftext|>|c<|endoftext|>", NULL},
    {"a ranking of messages, after messages", RECORD_PREFERENCE,
     "{'messages':[{'role':'user','content':'q'}],'completions':[[{'role':'assistant','content':'y'}],"
     "{'role':'assistant','content':'m'},[{'role':'assistant','content':'n'}]]}",
     U "q" E A "|y<|im_end|>|m<|im_end|>|n<|im_end|>", NULL},
    {"a ranking of two with a margin", RECORD_PREFERENCE, "{'prompt':'q','completions':['a','b'],'margin':2}",
     "q|a<|endoftext|>|b<|endoftext|>", NULL},
    {"TRL, unpaired preference", RECORD_UNPAIRED, "{'prompt':'q','completion':'a','label':true}", "qa<|endoftext|>",
     NULL},
    {"TRL, stepwise supervision", RECORD_STEP, "{'prompt':'q','completions':['a','b'],'labels':[true,false]}",
     "qa[\n]1b[\n]0", NULL},
    {"LLaMA-Factory, alpaca", RECORD_CHAT, "{'instruction':'Add.','input':'1, 2','output':'3'}",
     U "Add.\n1, 2" E A "[3<|im_end|>]\n", NULL},
    {"LLaMA-Factory, alpaca with an empty input, a system message and a history", RECORD_CHAT,
     "{'instruction':'r','input':'','output':'b','system':'s','history':[['q','a']]}",
     S "s" E U "q" E A "[a<|im_end|>]\n" U "r" E A "[b<|im_end|>]\n", NULL},
    {"LLaMA-Factory, alpaca preference", RECORD_PREFERENCE,
     "{'instruction':'q','input':'i','chosen':'y','rejected':'n'}", U "q\ni" E A "|y<|im_end|>|n<|im_end|>", NULL},
    {"LLaMA-Factory, alpaca KTO", RECORD_UNPAIRED, "{'instruction':'q','input':'','output':'a','kto_tag':false}",
     U "q" E A "a<|im_end|>", NULL},
    {"LLaMA-Factory, sharegpt with a system message", RECORD_CHAT,
     "{'conversations':[{'from':'human','value':'q'},{'from':'gpt','value':'a'}],'system':'s','tools':''}",
     S "s" E U "q" E A "[a<|im_end|>]\n", NULL},
    {"LLaMA-Factory, sharegpt preference", RECORD_PREFERENCE,
     "{'conversations':[{'from':'human','value':'q'}],'chosen':{'from':'gpt','value':'y'},"
     "'rejected':{'from':'gpt','value':'n'}}",
     U "q" E A "|y<|im_end|>|n<|im_end|>", NULL},
    {"LLaMA-Factory, sharegpt KTO", RECORD_UNPAIRED,
     "{'conversations':[{'from':'human','value':'q'},{'from':'gpt','value':'a'}],'kto_tag':true}",
     U "q" E A "a<|im_end|>", NULL},
    {"a table with both names of the role", RECORD_UNPAIRED,
     "{'messages':[{'role':null,'from':'human','content':'q'},{'role':null,'from':'gpt','content':'a'}],'label':true}",
     U "q" E A "a<|im_end|>", NULL},
    {"ShareGPT's names of roles", RECORD_CHAT,
     "{'conversations':[{'from':'system','value':'s'},{'from':'human','value':'q'},{'from':'chatgpt','value':'a'},"
     "{'from':'user','value':'r'},{'from':'bing','value':'b'},{'from':'observation','value':'o'},"
     "{'from':'bard','value':'c'}]}",
     S "s" E U "q" E A "[a<|im_end|>]\n" U "r" E A "[b<|im_end|>]\n<|im_start|>tool\no" E A "[c<|im_end|>]\n", NULL},
    {"axolotl, DPO of question, chosen and rejected", RECORD_PREFERENCE,
     "{'system':'s','question':'q','chosen':'y','rejected':'n'}", S "s" E U "q" E A "|y<|im_end|>|n<|im_end|>", NULL},
    {"axolotl, DPO of argilla", RECORD_PREFERENCE, "{'instruction':'q','chosen_response':'y','rejected_response':'n'}",
     U "q" E A "|y<|im_end|>|n<|im_end|>", NULL},
    {"axolotl, training per message", RECORD_CHAT,
     "{'messages':[{'role':'user','content':'q','train':false},{'role':'assistant','content':'a','train':false},"
     "{'role':'user','content':'r'},{'role':'assistant','content':'b','train':true}]}",
     U "q" E A "a" E U "r" E A "[b<|im_end|>]\n", NULL},
    {"OpenAI, weight", RECORD_CHAT,
     "{'messages':[{'role':'user','content':'q'},{'role':'assistant','content':'a','weight':0},"
     "{'role':'user','content':'r'},{'role':'assistant','content':'b','weight':1}]}",
     U "q" E A "a" E U "r" E A "[b<|im_end|>]\n", NULL},
    {"OpenAI, parts of a content", RECORD_CHAT,
     "{'messages':[{'role':'user','content':[{'type':'text','text':'q'},{'type':'text','text':'r'}]},"
     "{'role':'assistant','content':'a'}]}",
     U "qr" E A "[a<|im_end|>]\n", NULL},
    {"OpenAI, preference", RECORD_PREFERENCE,
     "{'input':{'messages':[{'role':'user','content':'q'}],'tools':[],'parallel_tool_calls':true},"
     "'preferred_output':[{'role':'assistant','content':'y'}],"
     "'non_preferred_output':[{'role':'assistant','content':'n'}]}",
     U "q" E A "|y<|im_end|>|n<|im_end|>", NULL},
    {"OpenAI, reinforcement fine-tuning", RECORD_PROMPT,
     "{'messages':[{'role':'user','content':'q'}],'answer':'4','reference':{'unit':'m'}}", U "q" E A, NULL},
    {"ms-swift, loss", RECORD_CHAT,
     "{'messages':[{'role':'user','content':'q'},{'role':'assistant','content':'a','loss':false},"
     "{'role':'user','content':'r'},{'role':'assistant','content':'b','loss':true}]}",
     U "q" E A "a" E U "r" E A "[b<|im_end|>]\n", NULL},
    {"verl", RECORD_PROMPT,
     "{'data_source':'openai/gsm8k','prompt':[{'role':'user','content':'q'}],'ability':'math',"
     "'reward_model':{'style':'rule','ground_truth':'72'},'extra_info':{'index':0}}",
     U "q" E A, NULL},
    {"open-instruct, RLVR", RECORD_PROMPT,
     "{'messages':[{'role':'user','content':'q'}],'ground_truth':'72','dataset':'gsm8k'}", U "q" E A, NULL},
    {"open-instruct, preference", RECORD_PREFERENCE,
     "{'prompt':'q','chosen':[{'role':'user','content':'q'},{'role':'assistant','content':'y'}],"
     "'rejected':[{'role':'user','content':'q'},{'role':'assistant','content':'n'}]}",
     U "q" E A "|y<|im_end|>|n<|im_end|>", NULL},
    {"GSM8K", RECORD_PROMPT, "{'question':'q','answer':'#### 72'}", "q", NULL},
    {"Dolly", RECORD_CHAT, "{'instruction':'q','context':'c','response':'a'}", U "q\nc" E A "[a<|im_end|>]\n", NULL},
    {"UltraFeedback: messages repeat chosen", RECORD_PREFERENCE,
     "{'prompt':'q','chosen':[{'role':'user','content':'q'},{'role':'assistant','content':'y'}],'score_chosen':8,"
     "'rejected':[{'role':'user','content':'q'},{'role':'assistant','content':'n'}],"
     "'messages':[{'role':'user','content':'q'},{'role':'assistant','content':'y'}]}",
     U "q" E A "|y<|im_end|>|n<|im_end|>", "field 'score_chosen', which is not read: 1"},
    {"samples of generate: messages and a completion", RECORD_CHAT,
     "{'messages':[{'role':'user','content':'q'}],'prompt':'rendered','completion':'a'}", U "q" E A "[a<|im_end|>]\n",
     "field 'prompt', which is not read: 1"},
    {"reasoning", RECORD_CHAT,
     "{'messages':[{'role':'user','content':'q'},{'role':'assistant','reasoning_content':'t','content':'a'}]}",
     U "q" E A "[<think>\nt\n</think>\n\na<|im_end|>]\n", "reasoning, which is written as <think>"},
    {"a role that is misspelt", RECORD_CHAT,
     "{'messages':[{'role':'user','content':'q'},{'role':'assitant','content':'a'},{'role':'assistant','content':'b'}]}",
     U "q" E "<|im_start|>assitant\na" E A "[b<|im_end|>]\n",
     "messages of role 'assitant', which are not trained on: 1"},
    {"fields that nothing reads", RECORD_CHAT,
     "{'messages':[{'role':'user','content':'q','name':'Ada'},{'role':'assistant','content':'a'}],'id':7}",
     U "q" E A "[a<|im_end|>]\n", "field 'id', which is not read: 1"},
};

/* Writes rows, in which ' stands for ", to $T/a.jsonl. */
static void put_rows(const char *text) {
    TextBuffer rows = {0};
    text_format(&rows, "%s\n", text);
    for (size_t i = 0; i < rows.length; i++)
        if (rows.text[i] == '\'') rows.text[i] = '"';
    put("a.jsonl", rows.text);
    text_free(&rows);
}

static void test_conventions(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof conventions / sizeof *conventions; i++) {
        const struct Convention *c = &conventions[i];
        print_message("%s\n", c->name);
        put_rows(c->row);
        run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard");
        Shard s = open_shard("a.shard", c->kind, 1);
        assert_record(&s, 0, c->record);
        shard_close(&s);
        if (c->warning) assert_holds(said, c->warning);
        else assert_null(strstr(said, "warning"));
    }
}

/* What a prompt record holds besides its tokens. */
static void test_prompt_fields(void **state) {
    (void)state;
    put_rows(
        "{'data_source':'openai/gsm8k','prompt':[{'role':'user','content':'q'}],'reward_model':{'ground_truth':'72'}}");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard && data/show --json $T/a.shard");
    assert_holds(out, "\"task\":\"gsm8k\",\"answer\":\"72\",\"fields\":{\"data_source\":\"openai/gsm8k\",");
    assert_holds(out, "\"messages\":[{\"role\":\"user\",\"content\":\"q\"}]");
    put_rows("{'messages':[{'role':'user','content':'q'}],'ground_truth':'72','dataset':'none/such','numbers':[1,2]}");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard && data/show --json $T/a.shard");
    assert_holds(out, "\"task\":\"\"");
    assert_holds(out, "\"numbers\":[1,2]");
    put_rows(
        "{'prompt':'a','answer':12345678901234567890123,'n':-98765432109876543210,'s':'1\\'99999999999999999999'}");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard && data/show $T/a.shard");
    assert_holds(out, "answer: 12345678901234567890123\n");
    assert_holds(out, "\"n\":\"-98765432109876543210\"");
    assert_holds(out, "\"s\":\"1\\\"99999999999999999999\"");
}

/* ---- labels and flags ------------------------------------------------------------------------------------------ */

static void test_labels(void **state) {
    (void)state;
    static const char *const labels[2][12] = {{"false", "0", "0.0", "-1", "'false'", "'0'", "'bad'", "'undesirable'",
                                               "'No'", "'incorrect'", "-1.0", "'rejected'"},
                                              {"true", "1", "1.0", "'true'", "'1'", "'good'", "'desirable'", "'Yes'",
                                               "'correct'", "'+1'", "'TRUE'", "'chosen'"}};
    TextBuffer rows = {0};
    for (int i = 0; i < 24; i++)
        text_format(&rows, "%s{'prompt':'q','completion':'a','label':%s}", i ? "\n" : "", labels[i % 2][i / 2]);
    put_rows(rows.text);
    text_free(&rows);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard");
    Shard s = open_shard("a.shard", RECORD_UNPAIRED, 24);
    Record r = {0};
    Error e;
    for (int i = 0; i < 24; i++) {
        assert_true(shard_record(&s, i, &r, &e));
        assert_int_equal(r.label, i % 2);
    }
    record_free(&r);
    shard_close(&s);
    static const char *const bad[][2] = {
        {"null", "is null"}, {"2", "is 2"}, {"0.5", "is 0.5"}, {"'maybe'", "is 'maybe'"}, {"[]", "is a list"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char row[100];
        snprintf(row, sizeof row, "{'prompt':'q','completion':'a','label':%s}", bad[i][0]);
        put_rows(row);
        snprintf(row, sizeof row, "line 1: field 'label': %s, expected true or false", bad[i][1]);
        refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard", row);
    }
    put_rows("{'prompt':'q','completion':'a'}\n{'prompt':'q','completion':'b','label':false}");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard", "line 2: is a row of kind unpaired");
    put_rows("{'messages':[{'role':'user','content':'q'},{'role':'assistant','content':'a','weight':0.5}]}");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard", "line 1: field 'messages[1].weight': is 0.5");
    put_rows("{'messages':[{'role':'user','content':'q'},{'role':'assistant','content':'a','weight':0}]}");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard --no-assistant-only-loss",
            "flag that it is not trained on");
}

/* A field that a row's verifier reads, with a value that it cannot use, is refused with the line; one that only verifiers
 * read, and this row's does not, is named. */
static void test_verifier_fields(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"{'prompt':'q','answer':'5','task':'numeric','tolerance':'0.1'}",
         "field 'tolerance': is \"0.1\", must be a number"},
        {"{'prompt':'q','answer':'5','task':'gsm8k','tolerance':-1}",
         "line 1: field 'tolerance': is -1, must be a number"},
        {"{'prompt':'q','answer':'5','tolerance':false}", "line 1: field 'tolerance': is false, must be a number"},
        {"{'prompt':'q','answer':'5','task':'add','style':'backwards'}",
         "line 1: field 'style': is \"backwards\", must be"},
        {"{'prompt':'q','answer':'5','task':'countdown','nums':['2',3]}",
         "line 1: field 'nums': is [\"2\",3], must be a list"},
        {"{'prompt':'q','answer':'5','task':'countdown','nums':[2,3],'use_all':1}",
         "line 1: field 'use_all': is 1, must be"},
        {"{'prompt':'q','answer':'5','task':'countdown','nums':[2,3],'target':'5'}",
         "line 1: field 'target': is \"5\", must"},
        {"{'prompt':'q','answer':')','task':'brackets','open':'x'}",
         "line 1: field 'open': is \"x\", must be brackets"},
        {"{'prompt':'q','answer':'a','task':'regex','pattern':['a']}",
         "line 1: field 'pattern': is [\"a\"], must be a text"},
        {"{'prompt':'q','answer':'a','task':'em','answers':'b'}", "line 1: field 'answers': is \"b\", must be a list"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        put_rows(rows[i][0]);
        refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard", rows[i][1]);
    }
    put_rows("{'prompt':'q','answer':'a','task':'exact','tolerance':0.1,'style':'formal'}");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/x.shard");
    assert_holds(said, "records with a field 'tolerance' that the check of their task does not read: 1");
}

/* Calls are refused by a template that cannot write them, with the line and the name. */
static void test_calls(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"{'messages':[{'role':'user','content':'q'},{'role':'assistant','content':'','tool_calls':[{'function':{'name':'f',"
         "'arguments':{}}}]}]}",
         "line 1: field 'messages[1].tool_calls'"},
        {"{'messages':[{'role':'user','content':'q'},{'role':'assistant','content':null,'function_call':{'name':'f',"
         "'arguments':'{}'}}]}",
         "line 1: field 'messages[1].function_call'"},
        {"{'conversations':[{'from':'human','value':'q'},{'from':'function_call','value':'{\\'name\\':\\'f\\'}'}]}",
         "line 1: field 'conversations[1]': a message of role function_call"},
        {"{'messages':[{'role':'user','content':'q'},{'role':'assistant','content':null}]}",
         "line 1: field 'messages[1].content': is null"},
        {"{'messages':[{'role':'user','content':[{'type':'image_url','image_url':{}}]},{'role':'assistant','content':'a'}]}",
         "line 1: field 'messages[0].content': part 0 is of type 'image_url'"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        put_rows(rows[i][0]);
        refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard", rows[i][1]);
    }
    put("t.jinja", "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}"
                   "[{{ c.function.name }}]{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
                   "<|im_start|>assistant\n{% endif %}");
    put_rows(rows[2][0]);
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --chat-template-path $T/t.jinja");
    Shard s = open_shard("a.shard", RECORD_CHAT, 1);
    assert_record(&s, 0, U "q" E A "[[f]<|im_end|>]\n");
    shard_close(&s);
    /* flags and continued prompts in a model's own template; reasoning that it does not write */
    put_rows("{'messages':[{'role':'user','content':'q'},{'role':'assistant','content':'a','weight':0},"
             "{'role':'user','content':'r'},{'role':'assistant','content':'b','thinking':'t'}]}\n"
             "{'prompt':[{'role':'user','content':'q'},{'role':'assistant','content':'It is '}],'completion':'four'}");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --chat-template-path $T/t.jinja");
    s = open_shard("a.shard", RECORD_CHAT, 2);
    assert_record(&s, 0, U "q" E A "a" E U "r" E A "[<think>\nt\n</think>\n\nb<|im_end|>]\n");
    assert_record(&s, 1, U "q" E A "It is [four<|im_end|>]\n");
    shard_close(&s);
    put_rows("{'prompt':[{'role':'user','content':'q'},{'role':'assistant','content':'It is '}],'answer':'four'}");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --chat-template-path $T/t.jinja");
    s = open_shard("a.shard", RECORD_PROMPT, 1);
    assert_record(&s, 0, U "q" E A "It is ");
    shard_close(&s);
}

/* ---- names and patterns ---------------------------------------------------------------------------------------- */

static void test_names(void **state) {
    (void)state;
    put_rows("{'question':'q','answer':'a'}");
    refused(
        1, "data/make_shard -i $T/a.jsonl -o $T/x.shard --completion-field answr",
        "line 1: has no field 'answr' (--completion-field); it has the fields question, answer; did you mean 'answer'?");
    refused(1,
            "data/make_shard -i $T/a.jsonl -o $T/x.shard --prompt-field question --answer-field zzzzzz --kind prompt",
            "no row has the field 'zzzzzz' (--answer-field)");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard --completion-field ANSWR", "did you mean 'answer'?");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --prompt-template 'Q: {question}\\n{{x}}' "
           "--completion-template '{answer}.'");
    Shard s = open_shard("a.shard", RECORD_CHAT, 1);
    assert_record(&s, 0, "Q: q\n{x}[a.<|endoftext|>]");
    shard_close(&s);
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard --prompt-template '{questio}'",
            "line 1: has no field 'questio' (--prompt-template); it has the fields question, answer; did you mean");
    refused(2, "data/make_shard -i $T/a.jsonl -o $T/x.shard --prompt-template '{question'", "a brace is neither");
    refused(2, "data/make_shard -i $T/a.jsonl -o $T/x.shard --prompt-template question", "has no {field}");
    refused(2, "data/make_shard -i $T/a.jsonl -o $T/x.shard --prompt-template '{question}' --prompt-field question",
            "--prompt-field and --prompt-template: give only one");
    put_rows("{'question':'q','reply':'b'}");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard", "has the fields question, reply; expected messages");
    /* a path into a list has an index */
    put_rows("{'turns':[{'text':'q'},{'text':'a'}]}");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard --prompt-field turns.0.text --completion-field turns.1.text");
    s = open_shard("a.shard", RECORD_CHAT, 1);
    assert_record(&s, 0, "q[a<|endoftext|>]");
    shard_close(&s);
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard --text-field turns.text", "has no field 'turns.text'");
    put_rows(
        "{'prompt':'q','completion':'a'}\n{'prompt':[{'role':'system','content':'s'},{'role':'user','content':'q'}],"
        "'completion':'a'}");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard", "line 2: field 'prompt': is a conversation");
}

/* data/README.md shows the table of names as the program prints it. */
static void test_table(void **state) {
    (void)state;
    run(0, "data/make_shard --help-fields");
    char *page = text_of("data/README.md");
    assert_non_null(strstr(page, out));
    free(page);
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static void test_arrays(void **state) {
    (void)state;
    put_rows("\n [ {'prompt':'a, ]','completion':'b\\\\'} ,\n {\n'prompt':'c',\n'completion':'}'}\n]\n");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard");
    Shard s = open_shard("a.shard", RECORD_CHAT, 2);
    assert_record(&s, 0, "a, ][b\\<|endoftext|>]");
    assert_record(&s, 1, "c[}<|endoftext|>]");
    shard_close(&s);
    static const char *const bad[][2] = {
        {"[{'prompt':'a','completion':'b'}", "the file ends inside its array, which has no ]"},
        {"[\n{'prompt':'a','completion':'b'}\n{'prompt':'a','completion':'b'}]", "line 2: is not JSON"},
        {"[{'prompt':'a','completion':'b'}] x", "line 1: more follows the end of the array"},
        {"[\n{'prompt':'a','completion':'b'},\n7]", "line 3: is not JSON"},
        {"[{'prompt':'a','completion':'b'},]", "line 1: an object of the array is missing"},
        {"[{'prompt':'a','completion':'b'},{'prompt':'", "the file ends inside its array"},
        {"[", "the file ends inside its array"},
        {"{\n'prompt':'a'}", "line 1: is not JSON at byte 1: "},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_rows(bad[i][0]);
        refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard", bad[i][1]);
    }
    put_rows("[]");
    refused(1, "data/make_shard -i $T/a.jsonl -o $T/x.shard", "contains no record");
}

/* Compresses text as one gzip member and appends it. */
static void add_member(TextBuffer *file, const char *text) {
    z_stream z = {0};
    char bytes[4000];
    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (Bytef *)text;
    z.avail_in = (uInt)strlen(text);
    z.next_out = (Bytef *)bytes;
    z.avail_out = sizeof bytes;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    text_append(file, bytes, sizeof bytes - z.avail_out);
    deflateEnd(&z);
}

static void test_gzip(void **state) {
    (void)state;
    TextBuffer file = {0};
    add_member(&file, "{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"c\",");
    const size_t half = file.length;
    add_member(&file, "\"completion\":\"d\"}\n");
    files_put(files_path("a.jsonl.gz"), file.text, file.length);
    run(0, "data/make_shard -i $T/a.jsonl.gz -o $T/a.shard");
    Shard s = open_shard("a.shard", RECORD_CHAT, 2);
    assert_record(&s, 1, "c[d<|endoftext|>]");
    shard_close(&s);
    run(0, "data/make_shard -i - -o $T/a.shard < $T/a.jsonl.gz");
    s = open_shard("a.shard", RECORD_CHAT, 2);
    shard_close(&s);
    files_put(files_path("a.jsonl.gz"), file.text, half - 3);
    refused(1, "data/make_shard -i $T/a.jsonl.gz -o $T/x.shard", "gzip stream is truncated after byte");
    files_put(files_path("a.jsonl.gz"), file.text, file.length - 3);
    refused(1, "data/make_shard -i $T/a.jsonl.gz -o $T/x.shard", "gzip stream is truncated after byte");
    file.text[half - 6] ^= 1; /* the checksum of the first member */
    files_put(files_path("a.jsonl.gz"), file.text, file.length);
    refused(1, "data/make_shard -i $T/a.jsonl.gz -o $T/x.shard", "gzip stream is damaged after byte");
    file.text[half - 6] ^= 1;
    text_append(&file, "\0\0\0\0", 4); /* padding */
    files_put(files_path("a.jsonl.gz"), file.text, file.length);
    run(0, "data/make_shard -i $T/a.jsonl.gz -o $T/a.shard");
    text_append(&file, "garbage", 7);
    files_put(files_path("a.jsonl.gz"), file.text, file.length);
    refused(1, "data/make_shard -i $T/a.jsonl.gz -o $T/x.shard", "gzip stream is damaged after byte");
    text_free(&file);
}

/* A file that is not JSON lines is named by its first bytes, by make_shard and by a reader of shards. */
static void test_wrong_files(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *name;
    } files[] = {
        {"PAR1\0\0\0\0", 8, "this is a Parquet file; convert it to JSON lines"},
        {"PK\3\4\0\0\0\0", 8, "this is a zip archive"},
        {"GGUF\3\0\0\0", 8, "this is a GGUF model"},
        {"\x40\0\0\0\0\0\0\0{\"a\":1}", 15, "this is a model in safetensors"},
        {"<!DOCTYPE html>\n<p>", 19, "this is a page of HTML"},
        {"\xFF\xFE{\0\"\0a\0", 8, "this is a text in UTF-16; convert it: iconv"},
        {"{\0\"\0a\0\"\0", 8, "this is a text in UTF-16"},
        {"BZh91AY", 7, "this is a bzip2 file"},
        {"version https://git-lfs.github.com/spec/v1\n", 43, "this is a pointer of Git LFS"},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        files_put(files_path("wrong"), files[i].bytes, files[i].n);
        refused(1, "data/make_shard -i $T/wrong -o $T/x.shard", files[i].name);
    }
    files_put(files_path("wrong"), "a\0b", 3);
    refused(1, "data/make_shard -i $T/wrong -o $T/x.shard", "is binary: it contains the byte 0");
    put("wrong", "prompt,completion\na,b\n");
    refused(1, "data/make_shard -i $T/wrong -o $T/x.shard", "is a table with commas (CSV), expected JSON lines");
    run(0, "data/make_shard -i $T/wrong -o $T/a.bin --kind text");
    put("wrong", "Yes, and no.\nOr, not.\n");
    run(0, "data/make_shard -i $T/wrong -o $T/a.bin");
    put("wrong", "");
    refused(1, "data/make_shard -i $T/wrong -o $T/x.shard", "wrong: is empty");
    put_rows("{'prompt':'a','completion':'b'}");
    run(0, "data/make_shard -i $T/a.jsonl -o $T/a.shard");
    refused(1, "data/make_shard -i $T/a.shard -o $T/x.shard", "this is a record shard");
    run(1, "data/show $T/a.jsonl");
    assert_holds(
        said, "a.jsonl: this is JSON; make a shard of it: data/make_shard -i FILE -o SHARD, expected a record shard");
}

static void test_inputs(void **state) {
    (void)state;
    put("p1.jsonl", "{\"prompt\":\"a\",\"completion\":\"b\"}\n");
    put("p2.jsonl", "{\"prompt\":\"c\",\"completion\":\"d\"}\n");
    run(0, "data/make_shard -i \"$T/p?.jsonl\" -o $T/a.shard");
    Shard s = open_shard("a.shard", RECORD_CHAT, 2);
    assert_record(&s, 0, "a[b<|endoftext|>]");
    shard_close(&s);
    refused(2, "data/make_shard -i \"$T/q?.jsonl\" -o $T/x.shard", "no file matches");
}

/* A template that cannot be parsed is refused before a row is read: this row cannot be read either. */
static void test_template_first(void **state) {
    (void)state;
    put("bad.jsonl", "no JSON\n");
    put("bad.jinja", "{% if %}");
    refused(2, "data/make_shard -i $T/bad.jsonl -o $T/x.shard --template '{user}Question'", "--template: ");
    refused(1, "data/make_shard -i $T/bad.jsonl -o $T/x.shard --chat-template-path $T/bad.jinja",
            "--chat-template-path ");
    refused(1, "data/make_shard -i $T/bad.jsonl -o $T/x.shard --template '{user}{content}{assistant}{content}{eos}'",
            "bad.jsonl");
}

/* An option that has no effect on the records is refused. */
static void test_unused_options(void **state) {
    (void)state;
    static const char *const wrong[][3] = {
        {"{'prompt':'q','completion':'a'}", "--task add", "--task: used only for records of kind prompt"},
        {"{'prompt':'q','completion':'a'}", "--answer-after x", "--answer-after: used only for records of kind prompt"},
        {"{'prompt':'q','answer':'a'}", "--prompt-end x", "--prompt-end: used only for records of kind preference"},
        {"{'prompt':'q','completion':'a'}", "--step-separator x",
         "--step-separator: used only for records of kind step"},
        {"{'prompt':'q','answer':'a'}", "--no-assistant-only-loss", "used only for records of kind chat"},
        {"{'text':'a'}", "--separator x", "--separator: used only for plain text"},
        {"{'text':'a'}", "--template chatml", "--template: not used for records of kind text"},
        {"{'text':'a'}", "--system s", "--system: not used for records of kind text"},
        {"{'text':'a'}", "--max-tokens 9", "--max-tokens: not used for records of kind text"},
        {"{'prompt':'q','completion':'a'}", "--truncation drop", "--truncation: used only with --max-tokens"},
        {"{'prompt':'q','completion':'a'}", "--seed 2", "--seed: used only with --val-output"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char line[200];
        put_rows(wrong[i][0]);
        snprintf(line, sizeof line, "data/make_shard -i $T/a.jsonl -o $T/x.shard %s", wrong[i][1]);
        refused(2, line, wrong[i][2]);
    }
    put_rows("{'prompt':"); /* an option that another one makes useless is refused before a row is read */
    refused(2, "data/make_shard -i $T/a.jsonl -o $T/x.shard --truncation drop", "used only with --max-tokens");
}

/* ---- round trip ------------------------------------------------------------------------------------------------ */

enum { TRIP_ROWS = 2000 };

/* Writes prompts of every form: texts, conversations with and without a system message, prompts that the model continues,
 * names of special tokens, and fields of all types. */
static void put_prompts(void) {
    TextBuffer rows = {0};
    for (int i = 0; i < TRIP_ROWS; i++) {
        const char *word[] = {"sum", "\\u00e9t\\u00e9", "<|im_end|>", "a\\n\\tb ", "\\ud83d\\ude00", "{content}"};
        const char *w = word[i % 6];
        text_format(&rows, "{\"answer\":\"%d\",\"task\":\"add\",\"numbers\":[%d,2.5,null],\"sample\":{\"x\":%d},", i, i,
                    i);
        if (i % 5 == 0) text_format(&rows, "\"prompt\":\"%s %d?\"}\n", w, i);
        else
            text_format(
                &rows, "\"%s\":[%s{\"role\":\"user\",\"content\":\"%s\"}%s%s]}\n", i % 5 == 1 ? "messages" : "prompt",
                i % 3 ? "" : "{\"role\":\"system\",\"content\":\"Be brief.\"},", w,
                i % 5 == 3 ? ",{\"role\":\"assistant\",\"content\":\"Yes.\"},{\"role\":\"user\",\"content\":\"And?\"}"
                           : "",
                i % 5 == 4 ? ",{\"role\":\"assistant\",\"content\":\"It is \"}" : "");
    }
    files_put(files_path("a.jsonl"), rows.text, rows.length);
    text_free(&rows);
}

/* Compares a prompt with the same prompt that has been through generate. */
static void assert_trip(const Record *a, const Record *b) {
    static const char *const added[] = {"completion", "tokens", "finished", "logprob"};
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->tokens, b->tokens, (size_t)a->count * sizeof *a->tokens);
    assert_string_equal(a->text, b->text);
    assert_string_equal(a->answer, b->answer);
    assert_string_equal(a->task, b->task);
    json_t *before = json_loads(a->fields, JSON_ALLOW_NUL, NULL), *after = json_loads(b->fields, JSON_ALLOW_NUL, NULL);
    for (int i = 0; i < 4; i++) assert_int_equal(json_object_del(after, added[i]), 0);
    /* a name that generate uses itself is kept in `fields` */
    json_t *sample = json_object_get(before, "sample");
    assert_true(json_equal(json_object_get(json_object_get(after, "fields"), "sample"), sample));
    json_object_del(before, "sample");
    json_object_del(after, "fields");
    assert_true(json_equal(before, after));
    json_decref(before), json_decref(after);
}

/* A prompt shard, its samples, and a shard of these: the same tokens, text, answer, task and fields. */
static void test_round_trip(void **state) {
    (void)state;
    static const char *const templates[] = {
        "--template chatml", "--template llama", "--template plain",
        "--template '{system}<s>{content}</s>\\n{user}Q: {content}\\n{assistant}A: {content}{eos}'",
        "--chat-template-path $T/t.jinja"};
    put("t.jinja", "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
                   "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
    put_rows("{'prompt':'q','completion':'a'}");
    run(0, "mv $T/a.jsonl $T/chat.jsonl");
    put_prompts();
    for (size_t t = 0; t < sizeof templates / sizeof *templates; t++) {
        char line[800];
        Error e;
        snprintf(
            line, sizeof line,
            "data/make_shard -i $T/chat.jsonl -o $T/chat.shard %s && data/make_shard -i $T/a.jsonl -o $T/a.shard %s && "
            "./train_sft --layers 1 --width 16 --heads 1 --context 256 -i $T/chat.shard -o $T/m --max-steps 1 --batch-tokens 64",
            templates[t], templates[t]);
        run(0, line);
        run(0, "./generate -c $T/m -i $T/a.shard -o $T/samples.jsonl --max-new-tokens 1 && "
               "data/make_shard --model $T/m -i $T/samples.jsonl -o $T/b.shard --kind prompt");
        Shard a = open_shard("a.shard", RECORD_PROMPT, TRIP_ROWS), b = open_shard("b.shard", RECORD_PROMPT, TRIP_ROWS);
        assert_string_equal(a.chat_template, b.chat_template);
        Record r = {0}, q = {0};
        for (int i = 0; i < TRIP_ROWS; i++) {
            assert_true(shard_record(&a, i, &r, &e) && shard_record(&b, i, &q, &e));
            assert_trip(&r, &q);
        }
        record_free(&r), record_free(&q);
        shard_close(&a), shard_close(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conventions),
        cmocka_unit_test(test_prompt_fields),
        cmocka_unit_test(test_labels),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_verifier_fields),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_gzip),
        cmocka_unit_test(test_wrong_files),
        cmocka_unit_test(test_inputs),
        cmocka_unit_test(test_template_first),
        cmocka_unit_test(test_unused_options),
        cmocka_unit_test(test_round_trip),
    };
    return cmocka_run_group_tests_name("rows", tests, setup, teardown);
}
