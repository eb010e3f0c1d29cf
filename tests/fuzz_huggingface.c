/* fuzz_huggingface.c - libFuzzer target: arbitrary bytes as a config.json. A configuration that is read is written and
 * read back equal, and a changed key is the only change.
 */
#include "../llmc/base/error.h"                     /* Error */
#include "../llmc/base/text.h"                      /* TextBuffer, TokenList, text_append, text_clear, ... */
#include "../llmc/model/config.h"                   /* ModelConfig */
#include "../llmc/model/huggingface.h"              /* huggingface_parse */
#include "../llmc/model/huggingface_config.h"       /* huggingface_config_read, huggingface_stops */
#include "../llmc/model/huggingface_config_write.h" /* huggingface_can_describe, huggingface_config_change, ... */
#include "fuzz.h"                                   /* require, require_error */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Error e = {""};
    ModelConfig c, again;
    TokenList stops = {0};
    json_t *root = huggingface_parse((const char *)data, n, "config.json", &e);
    if (!root) {
        require_error(&e);
        return 0;
    }
    TextBuffer b = {0};
    text_append(&b, (const char *)data, n);
    huggingface_config_change(&b, "vocab_size", "12345");
    json_t *changed = json_loadb(b.text, b.length, 0, NULL);
    require(changed && json_integer_value(json_object_get(changed, "vocab_size")) == 12345);
    json_object_set_new(root, "vocab_size", json_integer(12345));
    require(json_object_size(root) == json_object_size(changed));
    json_decref(changed);
    text_clear(&b);
    if (huggingface_config_read(&c, root, "config.json", &e)) {
        if (huggingface_stops(root, NULL, c.vocab, &stops, "config.json", &e) &&
            huggingface_can_describe(&c, "m", &e)) {
            huggingface_config_write(&b, &c, "float32", &stops);
            json_t *written = huggingface_parse(b.text, b.length, "written", &e);
            require(written && huggingface_config_read(&again, written, "written", &e));
            require(c.width == again.width && c.rotary == again.rotary && c.tied == again.tied);
            require(c.window == again.window && !memcmp(c.layer, again.layer, sizeof c.layer));
            require(c.norm_eps == again.norm_eps && c.rope.kind == again.rope.kind && c.rope.theta == again.rope.theta);
            json_decref(written);
        }
    } else require_error(&e);
    token_list_free(&stops);
    text_free(&b);
    json_decref(root);
    return 0;
}
