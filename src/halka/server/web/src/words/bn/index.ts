import type { Words } from "../words";
import account from "./account";
import adapters from "./adapters";
import advise from "./advise";
import compare from "./compare";
import documents from "./documents";
import errors from "./errors";
import fields from "./fields";
import jobs from "./jobs";
import methods from "./methods";
import parts from "./parts";
import playground from "./playground";
import shell from "./shell";
import train from "./train";

export default { account, adapters, advise, compare, documents, errors, fields, jobs, methods, parts, playground, shell, train } satisfies Words;
