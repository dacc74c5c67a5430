//! `/admin/v2/tenants`

use geminga_metadata::TenantInfo;

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};
use crate::routing;

pub(crate) async fn serve(call: &Call, path: &[&str]) -> Result<Answer> {
    let broker = &call.broker;
    match (call.method(), path) {
        ("GET", []) => Answer::json(broker.metadata().list_tenants().await?),
        ("GET", [name]) => {
            let found = broker.metadata().get_tenant(name).await?;
            Answer::json(found.ok_or_else(|| ApiError::not_found("Tenant does not exist"))?.value)
        }
        ("PUT", [name]) => {
            let info: Option<TenantInfo> = call.json_or_default()?;
            let info = info.ok_or_else(|| ApiError::precondition("TenantInfo is null"))?;
            broker.create_tenant(name, &info).await?;
            Ok(Answer::Nothing)
        }
        ("POST", [name]) => {
            broker.update_tenant(name, &call.json_or_default()?).await?;
            Ok(Answer::Nothing)
        }
        ("DELETE", [name]) => {
            let force = call.flag("force");
            if force && !broker.forced_tenant_deletion_allowed() {
                return Err(ApiError::not_allowed("Broker doesn't allow forced deletion of tenants"));
            }
            if force && broker.ownership().is_shared() {
                for namespace in broker.metadata().list_namespaces(name).await? {
                    routing::delete_topics_of(call, &namespace).await?;
                }
            }
            broker.delete_tenant(name, force).await?;
            Ok(Answer::Nothing)
        }
        _ => call.unsupported(),
    }
}
